// Package testenv says what a test may expect of the machine it runs on.
//
// A test that needs root, a kernel feature, a tool or the corpus of real images
// asks here. Where it is missing the test is skipped with the reason; a need
// named in THAW_REQUIRE (comma separated) fails the test instead, so that CI
// cannot lose tests silently. Needs are: root, fanotify, fuse, runtime, corpus,
// containerd, browser, and tool for all other external programs.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func missing(t testing.TB, need, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("THAW_REQUIRE"), ","), need) {
		t.Fatalf("%s (required by THAW_REQUIRE)", reason)
	}
	t.Skip(reason)
}

// NeedRoot skips unless the test runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root", "needs root")
	}
}

// NeedFanotify skips unless the kernel has pre-content events (Linux 6.14).
func NeedFanotify(t testing.TB) {
	t.Helper()
	NeedRoot(t)
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC|unix.FAN_UNLIMITED_QUEUE, unix.O_RDWR)
	if err != nil {
		missing(t, "fanotify", "needs fanotify pre-content events: "+err.Error())
	}
	defer unix.Close(fd)
	path := filepath.Join(t.TempDir(), "probe")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, unix.AT_FDCWD, path); err != nil {
		missing(t, "fanotify", "needs fanotify pre-content marks in "+filepath.Dir(path)+": "+err.Error())
	}
}

// NeedFUSE skips unless /dev/fuse can be opened.
func NeedFUSE(t testing.TB) {
	t.Helper()
	NeedRoot(t)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		missing(t, "fuse", "needs /dev/fuse: "+err.Error())
	}
	unix.Close(fd)
}

// NeedRuntime skips unless an OCI runtime is installed and returns its name.
func NeedRuntime(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	for _, name := range []string{"runc", "crun"} {
		if _, err := exec.LookPath(name); err == nil {
			return name
		}
	}
	missing(t, "runtime", "needs runc or crun")
	return ""
}

// NeedContainerd skips unless there is a containerd of a series ("2", "1.7") and
// returns the directory of its programs. THAW_CONTAINERD is the directory that
// scripts/containerd.sh install filled.
func NeedContainerd(t testing.TB, series string) string {
	t.Helper()
	NeedRoot(t)
	all := os.Getenv("THAW_CONTAINERD")
	if all == "" {
		missing(t, "containerd", "needs THAW_CONTAINERD, a directory filled by scripts/containerd.sh install")
	}
	dir := filepath.Join(all, series)
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			missing(t, "containerd", "needs containerd: "+err.Error())
		}
	}
	return dir
}

// NeedCNI skips unless the plugins of the container network interface are
// installed and returns their directory.
func NeedCNI(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	var err error
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err = os.Stat(filepath.Join(dir, "host-local")); err == nil {
			return dir
		}
	}
	missing(t, "containerd", "needs CNI plugins: "+err.Error())
	return ""
}

// NeedTool skips unless the named program is on the PATH.
func NeedTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, "tool", "needs the program "+name)
	}
}

// NeedBrowser skips unless a Chromium is installed and returns its program.
func NeedBrowser(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, "browser", "needs chromium")
	return ""
}

// Corpus returns the directory that holds the OCI layout of real images
// (THAW_CORPUS, with the layout in its folder oci), or skips.
func Corpus(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("THAW_CORPUS")
	if dir == "" {
		missing(t, "corpus", "needs THAW_CORPUS, a directory of real images")
	}
	if _, err := os.Stat(filepath.Join(dir, "oci", "index.json")); err != nil {
		missing(t, "corpus", "needs an OCI layout in THAW_CORPUS: "+err.Error())
	}
	return dir
}
