package credentials

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
)

var (
	alice = authn.AuthConfig{Username: "alice", Password: "alice's secret"}
	bob   = authn.AuthConfig{Username: "bob", Password: "bob's secret"}
)

func open(t *testing.T, opts StoreOptions) *Store {
	t.Helper()
	s, err := OpenStore(opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// has fails unless the store has these for a repository, in order.
func (s *Store) has(t *testing.T, repository string, want ...authn.AuthConfig) {
	t.Helper()
	got, err := s.Credentials(t.Context(), repository)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", repository, diff)
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, StoreOptions{Dir: dir})
	s.has(t, "a/b")
	good := s.Offer("a/b", alice)
	s.has(t, "a/b", alice)
	bad := s.Offer("a/b", bob)
	s.has(t, "a/b", bob, alice)
	good(true)
	s.has(t, "a/b", bob, alice)
	bad(false)
	s.has(t, "a/b", alice)
	s.has(t, "a/c")
	s.Offer("a/c", bob) // never ends: the daemon is killed

	s = open(t, StoreOptions{Dir: dir})
	s.has(t, "a/b", alice)
	s.has(t, "a/c")
	s.Offer("a/b", bob)(true) // the password was changed
	open(t, StoreOptions{Dir: dir}).has(t, "a/b", bob)

	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && path != dir {
			t.Errorf("%s: %v", path, info.Mode())
		}
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("secret")) || bytes.Contains(b, []byte("bob")) || bytes.Contains(b, []byte("a/b")) {
			t.Errorf("%s can be read", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestStoreOfAnother: without its key, or damaged, a sealed file gives nothing and
// stops nothing.
func TestStoreOfAnother(t *testing.T) {
	key := make([]byte, keyBytes)
	rand.Read(key)
	keyFile := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(path string, b []byte) (StoreOptions, []byte){
		"another key": func(dir string, b []byte) (StoreOptions, []byte) { return StoreOptions{Dir: dir}, b },
		"a flipped bit": func(dir string, b []byte) (StoreOptions, []byte) {
			b[len(b)/2] ^= 1
			return StoreOptions{Dir: dir, KeyFile: keyFile}, b
		},
		"another version": func(dir string, b []byte) (StoreOptions, []byte) {
			b[0]++
			return StoreOptions{Dir: dir, KeyFile: keyFile}, b
		},
		"torn": func(dir string, b []byte) (StoreOptions, []byte) {
			return StoreOptions{Dir: dir, KeyFile: keyFile}, b[:len(b)-3]
		},
		"empty": func(dir string, b []byte) (StoreOptions, []byte) {
			return StoreOptions{Dir: dir, KeyFile: keyFile}, nil
		},
		"shorter than nonce": func(dir string, b []byte) (StoreOptions, []byte) {
			return StoreOptions{Dir: dir, KeyFile: keyFile}, b[:5]
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, StoreOptions{Dir: dir, KeyFile: keyFile})
			s.Offer("a/b", alice)(true)
			open(t, StoreOptions{Dir: dir, KeyFile: keyFile}).has(t, "a/b", alice)
			b, err := os.ReadFile(s.path())
			if err != nil {
				t.Fatal(err)
			}
			opts, b := spoil(dir, b)
			if err := os.WriteFile(s.path(), b, 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, opts)
			s.has(t, "a/b")
			s.Offer("a/b", bob)(true)
			open(t, opts).has(t, "a/b", bob)
		})
	}
	if _, err := OpenStore(StoreOptions{Dir: t.TempDir(), KeyFile: "/none"}); err == nil {
		t.Error("a missing key is accepted")
	}
	short := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(short, key[:31], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(StoreOptions{Dir: t.TempDir(), KeyFile: short}); err == nil || !strings.Contains(err.Error(), "31 bytes") {
		t.Errorf("a short key: %v", err)
	}
}

func TestStoreInMemory(t *testing.T) {
	s := open(t, StoreOptions{})
	s.Offer("a/b", alice)(true)
	s.has(t, "a/b", alice)

	dir := t.TempDir()
	s = open(t, StoreOptions{Dir: dir})
	s.Offer("a/b", alice)(true)
	if err := os.WriteFile(filepath.Join(dir, ".tmp-123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, StoreOptions{Dir: dir, InMemory: true})
	s.has(t, "a/b")
	s.Offer("a/b", bob)(true)
	s.has(t, "a/b", bob)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}

// TestStoreForgets: it keeps a bounded number, the newest, and none that is old.
func TestStoreForgets(t *testing.T) {
	s := open(t, StoreOptions{})
	for i := range maxEntries + 10 {
		s.Offer(fmt.Sprintf("a/%d", i), alice)(true)
	}
	s.has(t, "a/0")
	s.has(t, fmt.Sprintf("a/%d", maxEntries+9), alice)
	if len(s.entries) != maxEntries {
		t.Errorf("%d entries", len(s.entries))
	}
	dir := t.TempDir()
	s = open(t, StoreOptions{Dir: dir})
	s.entries["a/old"] = entry{plain(alice), time.Now().Add(-maxAge - time.Hour)}
	s.has(t, "a/old")
	s.Offer("a/new", bob)(true)
	s = open(t, StoreOptions{Dir: dir})
	s.has(t, "a/old")
	s.has(t, "a/new", bob)
}
