package tracefs

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/testenv"
)

// envServe makes the test binary a server that takes one connection.
const envServe = "THAW_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(envServe) == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	c, err := l.Accept()
	if err != nil {
		panic(err)
	}
	c.Close()
}

func instances(t *testing.T) []string {
	t.Helper()
	fd, err := detached()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	all, err := filepath.Glob(fmt.Sprintf("/proc/self/fd/%d/instances/%s%d-*", fd, prefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestTrace: a real program is seen to be executed, to listen, and to take a
// connection, in this order and at times that this process agrees with.
func TestTrace(t *testing.T) {
	testenv.NeedRoot(t)
	in, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `exec "$0"`, "/proc/self/exe")
	cmd.Args[3], err = os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), envServe+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	before := clock.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	known := clock.Now()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	listened := clock.Now()
	var port int
	if _, err := fmt.Sscan(line, &port); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	after := clock.Now()
	all := in.Events()
	f := Follow(all, cmd.Process.Pid, known)
	if len(f.Processes) != 2 || f.Program != "/bin/sh" || f.Processes[1].End == 0 {
		t.Errorf("processes %+v", f.Processes)
	}
	listen, ok := f.Listen(port)
	if !ok || len(f.Accepts) == 0 {
		t.Fatalf("listen %+v, accepts %+v", f.Listens, f.Accepts)
	}
	var made time.Duration
	for _, e := range all {
		if e.Kind == Established && e.Port == port {
			made = e.At
		}
	}
	// The trace's clock has microseconds, cut off.
	times := []time.Duration{before - time.Microsecond, f.Executed, listen.At, listened, made + time.Microsecond, f.Accepts[0].At + time.Microsecond, after + time.Microsecond}
	for i := 1; i < len(times); i++ {
		if times[i] < times[i-1] {
			t.Errorf("times %v are not in order", times)
		}
	}
	if in.Incomplete() {
		t.Error("events were lost")
	}
	if len(instances(t)) != 1 {
		t.Error("there is no instance")
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if left := instances(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestStale: the instance of a process that is no more is removed, that of another
// one that lives is not.
func TestStale(t *testing.T) {
	testenv.NeedRoot(t)
	fd, err := detached()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	dir := fmt.Sprintf("/proc/self/fd/%d/instances/", fd)
	stale := fmt.Sprintf("%s%s%d-1-1", dir, prefix, os.Getpid()) // of a former process of our number
	live := fmt.Sprintf("%s%s%d-%d-7", dir, prefix, os.Getppid(), clock.Started(os.Getppid()))
	for _, d := range []string{stale, live} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	defer os.Remove(live)
	in, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("the stale one: %v", err)
	}
	if _, err := os.Stat(live); err != nil {
		t.Errorf("the other one: %v", err)
	}
}

// TestForget: what is older goes, what is newer stays.
func TestForget(t *testing.T) {
	testenv.NeedRoot(t)
	in, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	run := func() int {
		cmd := exec.Command("/bin/true")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid
	}
	has := func(pid int) bool {
		return slices.ContainsFunc(in.Events(), func(e Event) bool { return e.Kind == Exec && e.Thread == pid })
	}
	old := run()
	if !has(old) {
		t.Fatal("an execution was not traced")
	}
	between := clock.Now()
	young := run()
	in.Forget(between)
	if has(old) || !has(young) {
		t.Errorf("the older one is there: %v, the younger one: %v", has(old), has(young))
	}
}
