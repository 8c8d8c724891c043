package layertartest_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/layertar/layertartest"
	"github.com/thaw-project/thaw/internal/testenv"
)

func applyAll(t *testing.T, layers [][]byte) string {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	for i, l := range layers {
		if err := layertartest.Apply(dir, bytes.NewReader(l)); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
	}
	return dir
}

func TestApplyEverything(t *testing.T) {
	dir := applyAll(t, layertartest.Everything())
	for name, want := range map[string]string{ // file to its content
		"etc/passwd":                  "root:x:0:0:root:/root:/bin/sh\n",
		"again/file":                  "second",
		"again/keeps-old":             "old",
		"again/old":                   "new",
		"again/file-then-dir/child":   "c",
		"again/dir-then-file":         "f",
		"again/link-then-file":        "not through the link",
		"again/dir/kept":              "k",
		"low/deleted-link-stays":      "lower deleted",
		"low/back-and-deleted":        "upper, before its whiteout",
		"low/replaced":                "upper",
		"low/dir-recreated/new":       "n",
		"low/link-to-changed":         "lower linked-and-changed",
		"low/linked-and-changed":      "changed after it was linked",
		"low/third-link":              "lower linked",
		"low/dir-merged/d":            "d",
		"low/dir-implicit/a":          "a",
		"low/dir-implicit/sub/c":      "c",
		"opaque/first/same":           "u",
		"opaque/last/sub/new":         "u",
		"opaque/between/new":          "u",
		"opaque/nested/same":          "l",
		layertartest.LongDir + "/gnu": "GNU long name",
		"long/hardlink-pax":           "PAX path",
		"sizes/pax-size":              string(layertartest.Fill(25, 600)),
	} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s holds %.60q (%v), want %.60q", name, got, err, want)
		}
	}
	for _, name := range []string{
		"root-file-deleted", "low/deleted", "low/deleted-symlink", "low/dir-deleted", "low/dir-recreated/a", "low/dir-merged/a", "low/dir-merged/b",
		"low/deleted-and-back", "opaque/first/lower", "opaque/first/sub", "opaque/last/lower", "opaque/last/sub/lower", "opaque/between/lower",
		"opaque/implicit/lower", "opaque/alone/lower", "opaque/nested/lower", "opaque/nested/sub/lower", ".wh..wh.plnk", ".wh..wh.aufs", "again/dir-then-file/gone",
	} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", ".wh.*")); err != nil || len(left) > 0 {
		t.Errorf("whiteouts left: %v, %v", left, err)
	}
	attributesOf(t, dir)
}

func attributesOf(t *testing.T, dir string) {
	t.Helper()
	for _, c := range []struct {
		name      string
		mode      uint32
		uid, gid  uint32
		sec, nsec int64
	}{
		{".", unix.S_IFDIR | 0o755, 0, 0, 1_600_000_000, 0},
		{"attrs/uid-base256", unix.S_IFREG | 0o600, 3_000_000_000, 2_500_000, layertartest.ModTime, 0},
		{"attrs/uid-pax", unix.S_IFREG | 0o644, 4_000_000_001, 2_097_152, layertartest.ModTime, 0},
		{"attrs/suid", unix.S_IFREG | 0o4755, 1000, 1000, layertartest.ModTime, 0},
		{"attrs/time-negative-pax", unix.S_IFREG | 0o644, 0, 0, -2, 5e8},
		{"attrs/time-just-before-1970", unix.S_IFREG | 0o644, 0, 0, -1, 999_999_999},
		{"attrs/time-dir", unix.S_IFDIR | 0o755, 0, 0, 1_600_000_000, 5e8},
		{"again/dir", unix.S_IFDIR | 0o700, 9, 0, layertartest.ModTime, 0},
		{"late", unix.S_IFDIR | 0o701, 8, 0, 1_500_000_000, 0},
		{"never/a", unix.S_IFDIR | 0o755, 0, 0, 0, 0},
		{"low", unix.S_IFDIR | 0o755, 0, 0, layertartest.ModTime, 0},
		{"low/dir-chmod", unix.S_IFDIR | 0o700, 12, 0, layertartest.ModTime, 0},
		{"dev/null", unix.S_IFCHR | 0o666, 0, 0, layertartest.ModTime, 0},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, c.name), &st); err != nil {
			t.Error(err)
		} else if st.Mode != c.mode || st.Uid != c.uid || st.Gid != c.gid || st.Mtim.Sec != c.sec || st.Mtim.Nsec != c.nsec {
			t.Errorf("%s: mode %o owner %d:%d time %d.%09d, want %+v", c.name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, c)
		}
	}
	for name, want := range map[string]string{ // file to the names of its xattrs
		"attrs/xattrs":           "trusted.t user.binary user.color user.empty",
		"attrs/capability":       "security.capability",
		"attrs/acl":              "system.posix_acl_access",
		"attrs/xattr-dir":        "system.posix_acl_default trusted.d user.d",
		"attrs/xattr-symlink":    "trusted.link",
		"attrs/xattr-libarchive": "user.both user.lib",
		"attrs/xattr-foreign":    "user.kept",
		"again/dir-xattr":        "",
		"low/dir-chmod":          "user.upper",
		"low/dir-implicit":       "user.lower",
	} {
		buf := make([]byte, 1024)
		n, err := unix.Llistxattr(filepath.Join(dir, name), buf)
		if err != nil {
			t.Error(err)
			continue
		}
		got := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
		if len(got) != len(strings.Fields(want)) {
			t.Errorf("%s has xattrs %q, want %q", name, got, want)
		}
		for _, x := range got {
			if !strings.Contains(want, x) {
				t.Errorf("%s has xattr %q, want %q", name, x, want)
			}
		}
	}
	var st, other unix.Stat_t
	for _, group := range [][]string{{"links/a", "links/b", "links/c", "links/with-size"}, {"low/linked", "low/link-to-lower", "low/third-link"}, {"links/sym", "links/sym-hard"}} {
		for i, name := range group {
			if err := unix.Lstat(filepath.Join(dir, name), &other); err != nil {
				t.Error(err)
			}
			if i > 0 && st.Ino != other.Ino {
				t.Errorf("%s is not linked to %s", name, group[0])
			}
			st = other
		}
	}
	if err := unix.Lstat(filepath.Join(dir, layertartest.HugePath), &st); err != nil || st.Size != layertartest.HugeBytes || st.Blocks > 1000 {
		t.Errorf("%s: size %d in %d blocks, %v", layertartest.HugePath, st.Size, st.Blocks, err)
	}
}

func TestApplyThroughSymlinks(t *testing.T) {
	dir := applyAll(t, layertartest.ThroughSymlinks())
	for _, name := range []string{"usr/lib/x", "usr/lib/x2", "usr/bin/y", "usr/lib/z", "usr/lib/old"} {
		if fi, err := os.Lstat(filepath.Join(dir, name)); err != nil || !fi.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "usr/lib/gone")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("usr/lib/gone: %v", err)
	}
}

func TestGzip(t *testing.T) {
	want := layertartest.Fill(1, 100_001)
	for _, members := range []int{1, 2, 7} {
		z, err := gzip.NewReader(bytes.NewReader(layertartest.Gzip(want, members)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d members: %d bytes, %v", members, len(got), err)
		}
	}
}
