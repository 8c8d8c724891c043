package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestCommand(t *testing.T) {
	image := v1.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}
	cases := []struct {
		name             string
		entrypoint, args []string
		want             []string
	}{
		{"the image's", nil, nil, []string{"e", "c"}},
		{"other arguments", nil, []string{"x", "y"}, []string{"e", "x", "y"}},
		{"no arguments", nil, []string{}, []string{"e"}},
		{"other entrypoint", []string{"n"}, nil, []string{"n"}},
		{"both", []string{"n"}, []string{"x"}, []string{"n", "x"}},
		{"entrypoint cleared", []string{}, []string{"x"}, []string{"x"}},
	}
	for _, c := range cases {
		got := Command(image, c.entrypoint, c.args)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func accountsRoot(t *testing.T, files map[string]string, links map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for path, target := range links {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestResolveUser(t *testing.T) {
	plain := accountsRoot(t, map[string]string{"etc/passwd": passwd, "etc/group": group}, nil)
	linked := accountsRoot(t, map[string]string{"usr/lib/passwd": passwd, "usr/lib/group": group},
		map[string]string{"etc/passwd": "/usr/lib/passwd", "etc/group": "../../../usr/lib/group"})
	none := accountsRoot(t, nil, nil)
	big := accountsRoot(t, map[string]string{"etc/passwd": "big:x:3000000000:3000000000::/:\n"}, nil)
	cases := []struct {
		root, name string
		want       specs.User
		home       string
	}{
		{plain, "", specs.User{}, "/root"},
		{plain, "root", specs.User{}, "/root"},
		{plain, "ann", specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{10, 44}}, "/home/ann"},
		{plain, "1000", specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{10, 44}}, "/home/ann"},
		{plain, "ann:video", specs.User{UID: 1000, GID: 44}, "/home/ann"},
		{plain, "ann:7", specs.User{UID: 1000, GID: 7}, "/home/ann"},
		{plain, "12:34", specs.User{UID: 12, GID: 34}, "/"},
		{linked, "ann:wheel", specs.User{UID: 1000, GID: 10}, "/home/ann"},
		{none, "", specs.User{}, "/"},
		{none, "65534", specs.User{UID: 65534}, "/"},
		{big, "3000000000", specs.User{UID: 3000000000}, "/"},
	}
	for _, c := range cases {
		got, home, err := resolveUser(c.root, c.name)
		if c.root == big {
			if err == nil {
				t.Errorf("user %q: no error, though the runtime has no such ids", c.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("user %q: %v", c.name, err)
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" || home != c.home {
			t.Errorf("user %q: home %q, %s", c.name, home, diff)
		}
	}
	for _, name := range []string{"bob", "ann:none", "-1", "root:-5"} {
		if u, _, err := resolveUser(plain, name); err == nil {
			t.Errorf("user %q: %v", name, u)
		}
	}
}

// TestAccountsStayInTheRoot: an image cannot have the machine's files read, nor
// have us wait for a fifo.
func TestAccountsStayInTheRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("eve:x:666:666::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"absolute": outside,
		"relative": strings.Repeat("../", 30) + outside,
		"proc":     "/proc/self/root" + outside,
	} {
		root := accountsRoot(t, nil, map[string]string{"etc/passwd": target})
		if u, _, err := resolveUser(root, "eve"); err == nil {
			t.Errorf("%s: found %v outside", name, u)
		}
	}
	root := accountsRoot(t, map[string]string{"etc/group": group}, nil)
	if err := unix.Mkfifo(filepath.Join(root, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := resolveUser(root, "ann"); err == nil {
		t.Error("a fifo is read")
	}
}

func TestStopSignal(t *testing.T) {
	cases := map[string]unix.Signal{
		"": unix.SIGTERM, "SIGQUIT": unix.SIGQUIT, "quit": unix.SIGQUIT, "3": unix.SIGQUIT,
		"SIGRTMIN+3": 37, "RTMIN+3": 37, "SIGNONE": unix.SIGTERM, "99": unix.SIGTERM,
	}
	for s, want := range cases {
		if got := stopSignal(s); got != want {
			t.Errorf("%q is %v, want %v", s, got, want)
		}
	}
}

func TestSpecRefuses(t *testing.T) {
	good := Options{ID: "a", Bundle: t.TempDir(), Rootfs: t.TempDir(), Args: []string{"x"}}
	if _, err := Spec(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Options){
		"no id":           func(o *Options) { o.ID = "" },
		"id with slash":   func(o *Options) { o.ID = "a/b" },
		"id dots":         func(o *Options) { o.ID = ".." },
		"relative bundle": func(o *Options) { o.Bundle = "b" },
		"relative rootfs": func(o *Options) { o.Rootfs = "b" },
		"network":         func(o *Options) { o.Network = "bridge" },
		"negative memory": func(o *Options) { o.MemoryBytes = -1 },
		"no command":      func(o *Options) { o.Args = nil },
		"no such user":    func(o *Options) { o.User = "bob" },
		"no such source":  func(o *Options) { o.Mounts = []Mount{{Source: "/none/such", Target: "/x"}} },
		"relative target": func(o *Options) { o.Mounts = []Mount{{Source: "/", Target: "x"}} },
		"target is root":  func(o *Options) { o.Mounts = []Mount{{Source: "/", Target: "/.."}} },
	} {
		o := good
		change(&o)
		if _, err := Spec(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestEnvironmentFromThisProcess(t *testing.T) {
	t.Setenv("THAW_TEST_PASSED", "on")
	got := environment(Options{Hostname: "h", Env: []string{"THAW_TEST_PASSED", "THAW_TEST_UNSET"}, TTY: true}, "/")
	want := []string{defaultPath, "HOSTNAME=h", "HOME=/", "TERM=xterm", "THAW_TEST_PASSED=on"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
