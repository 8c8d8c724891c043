package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/testenv"
)

// newRunNode is a node that can run containers, and a reference to an image
// with a shell whose index is beside it.
func newRunNode(t testing.TB, config ...string) (n *node, ref string) {
	t.Helper()
	testenv.NeedRuntime(t)
	layout, _ := corpus(t, "nginx")
	n = newNode(t, config...)
	ref = newLab(t, layout, "none").Addr() + "/nginx"
	n.pushIndex(ref)
	return n, ref
}

// shell runs a script in the image.
func shell(ref, script string) []string { return []string{"--entrypoint", "sh", ref, "-c", script} }

func TestRun(t *testing.T) {
	n, ref := newRunNode(t)
	shared := n.mkdir()
	if err := os.WriteFile(shared+"/file", []byte("from outside\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("THAW_E2E", "on")
	cases := []struct {
		name   string
		flags  []string
		script string
		code   int
		stdout string
	}{
		{"exit code", nil, "exit 42", 42, ""},
		{"killed", nil, "sh -c 'kill -9 $$'", 137, ""},
		{"streams", nil, "echo out; echo err >&2", 0, "out\n"},
		{"image's environment", nil, "echo $LC_ALL $PORT", 0, "C.UTF-8 18083\n"},
		{"-e", []string{"-e", "A=b c", "-e", "THAW_E2E", "-e", "PORT=1"}, `echo "$A" $THAW_E2E $PORT`, 0, "b c on 1\n"},
		{"-w", []string{"-w", "/usr/lib"}, "pwd", 0, "/usr/lib\n"},
		{"root by default", nil, "id -u; id -g; pwd", 0, "0\n0\n/\n"},
		{"-u by name", []string{"-u", "www-data"}, "id -u; id -g; echo $HOME", 0, "33\n33\n/var/www\n"},
		{"-u by number", []string{"-u", "1234:mail"}, "id -u; id -g", 0, "1234\n8\n"},
		{"-v", []string{"-v", shared + ":/mnt/x"}, "cat /mnt/x/file; echo back > /mnt/x/written", 0, "from outside\n"},
		{"-v ro", []string{"-v", shared + ":/mnt/x:ro"}, "cat /mnt/x/file; echo no > /mnt/x/no || echo refused", 0, "from outside\nrefused\n"},
		{"root is writable", nil, "echo changed > /etc/passwd && cat /etc/passwd && rm -r /usr/share/perl && mkdir /usr/share/perl", 0, "changed\n"},
		{"and is so again", nil, "head -n 1 /etc/passwd; test -n \"$(ls /usr/share/perl)\" && echo there", 0, "root:x:0:0:root:/root:/bin/bash\nthere\n"},
		{"--read-only", []string{"--read-only"}, "touch /x || touch /etc/passwd || echo refused", 0, "refused\n"},
		{"--network none", []string{"--network", "none"}, "ls /sys/class/net", 0, "lo\n"},
		{"--hostname", []string{"--hostname", "box"}, "hostname", 0, "box\n"},
		{"no standard input", nil, "cat", 0, ""},
		{"--mount=eager", []string{"--mount=eager"}, "echo eager", 0, "eager\n"},
		{"--memory and --cpus", []string{"--memory", "64m", "--cpus", "0.5"}, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", -1, "67108864\n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			n := n.in(t)
			r := n.run(append(c.flags, shell(ref, c.script)...)...)
			if r.code != c.code && c.code >= 0 || r.stdout != c.stdout {
				t.Errorf("want exit code %d and %q\n%v", c.code, c.stdout, r)
			}
		})
	}
	if b, err := os.ReadFile(shared + "/written"); err != nil || string(b) != "back\n" {
		t.Errorf("the container wrote %q, %v", b, err)
	}
	t.Run("arguments", func(t *testing.T) {
		r := n.in(t).run("--entrypoint", "printf", ref, "<%s>", "a b", "--name", "-x")
		if r.code != 0 || r.stdout != "<a b><--name><-x>" {
			t.Error(r)
		}
	})
	t.Run("not found", func(t *testing.T) { n.in(t).refuses(127, "thaw: error: ", n.runArgs("--entrypoint", "/none", ref)...) })
	t.Run("not executable", func(t *testing.T) {
		n.in(t).refuses(126, "thaw: error: ", n.runArgs("--entrypoint", "/etc/passwd", ref)...)
	})
	t.Run("no such user", func(t *testing.T) {
		n.in(t).refuses(125, "nobody-here", n.runArgs("-u", "nobody-here", ref)...)
	})
	t.Run("no such volume", func(t *testing.T) {
		n.in(t).refuses(125, "/none-such", n.runArgs("-v", "/none-such:/x", ref)...)
	})
	n.forgotten()
}

func TestRunInteractive(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	t.Run("-i", func(t *testing.T) {
		n := n.in(t)
		cmd := n.command(n.runArgs("-i", "--entrypoint", "cat", ref)...)
		cmd.Stdin = strings.NewReader("through a container\n")
		out, err := cmd.Output()
		if err != nil || string(out) != "through a container\n" {
			t.Errorf("printed %q, %v", out, err)
		}
	})
	t.Run("-it", func(t *testing.T) {
		n := n.in(t)
		cmd := n.command(n.runArgs(append([]string{"-it"}, shell(ref, `trap 'echo interrupted; exit 3' INT
test -t 0 && test -t 1 && test -t 2 && echo terminal
stty size
read line; echo "read $line"
while :; do sleep 0.1; done`)...)...)...)
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
		if err != nil {
			t.Fatal(err)
		}
		defer tty.Close()
		out, done := newOutput(), make(chan struct{})
		go func() {
			defer close(done)
			io.Copy(out, tty)
		}()
		defer cmd.Process.Kill()
		expect := func(text string) {
			t.Helper()
			if !out.wait(text, done) {
				t.Fatalf("want %q, the terminal shows %q", text, out)
			}
		}
		expect("terminal\r\n")
		expect("33 77\r\n")
		fmt.Fprint(tty, "typed\n")
		expect("read typed\r\n")
		fmt.Fprint(tty, "\x03")
		expect("interrupted\r\n")
		cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 3 {
			t.Errorf("exit code %d", code)
		}
	})
}

// loop prints up and waits; signals do what trap says.
func loop(trap string) string { return trap + "; echo up; while :; do sleep 0.05; done" }

func TestRunSignals(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	for _, c := range []struct {
		name, trap string
		signal     unix.Signal
		code       int
	}{
		{"SIGTERM", `trap "exit 7" TERM`, unix.SIGTERM, 7},
		{"SIGINT", `trap "exit 8" INT`, unix.SIGINT, 8},
		{"SIGUSR1", `trap "exit 9" USR1`, unix.SIGUSR1, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := n.in(t).launch(shell(ref, loop(c.trap))...)
			p.prints("up\n")
			p.signal(c.signal)
			if r := p.wait(); r.code != c.code {
				t.Error(r)
			}
		})
	}
}

func TestRunTwoAtOnce(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	var all []*process
	for i := range 3 { // at the same moment, with nothing here and no daemon
		all = append(all, n.launch(shell(ref, fmt.Sprintf("echo %d > /x; cat /x; cat /usr/bin/perl | sha256sum; ", i)+loop(`trap "exit 0" TERM`))...))
	}
	for i, p := range all {
		p.prints("up\n")
		if !strings.HasPrefix(p.out.String(), fmt.Sprint(i)) {
			t.Errorf("container %d prints %q", i, p.out)
		}
	}
	if s := n.status(); len(s.Mounts) != 3 {
		t.Errorf("%d mounts", len(s.Mounts))
	}
	name := n.status().Mounts[0].ID
	n.refuses(125, fmt.Sprintf("name %q is in use", name), "run", "--name", name, ref)
	sums := map[string]bool{}
	for _, p := range all {
		p.signal(unix.SIGTERM)
		if r := p.wait(); r.code != 0 {
			t.Error(r)
		}
		_, sum, _ := strings.Cut(p.out.String(), "\n")
		sums[sum] = true
	}
	if len(sums) != 1 {
		t.Errorf("they read different bytes: %v", sums)
	}
}

// nextPort is where freePort goes on.
var nextPort atomic.Uint32

// freePort returns a port of this machine that nobody listens on. It is none of
// those that the kernel gives to connections and to who asks for any, so nobody
// gets it before the test's own server does, and no two tests get the same.
func freePort(t testing.TB) string {
	t.Helper()
	const first, ports = 20_000, 10_000
	nextPort.CompareAndSwap(0, uint32(os.Getpid())%ports+1)
	for range ports {
		port := strconv.Itoa(first + int(nextPort.Add(1)%ports))
		if l, err := net.Listen("tcp", ":"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatalf("all ports from %d on are taken", first)
	return ""
}

// readyArgs start the image's server until it answers.
func (n *node) readyArgs(ref string, flags ...string) []string {
	port := freePort(n)
	flags = append(flags, "-e", "PORT="+port, "--ready", "http://127.0.0.1:"+port+"/ready", "--ready-timeout", "60s", "--exit-when-ready", ref)
	return n.runArgs(flags...)
}

// timelineOf runs a server until it is ready and returns the timeline.
func (n *node) timelineOf(ref string, flags ...string) timelineJSON {
	n.Helper()
	path := n.path("timeline.json")
	os.Remove(path)
	n.thaw(n.readyArgs(ref, append(flags, "--timeline-file", path)...)...)
	return n.readTimeline(path)
}

func (n *node) readTimeline(path string) timelineJSON {
	n.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		n.Fatal(err)
	}
	var line timelineJSON
	if err := json.Unmarshal(b, &line); err != nil {
		n.Fatal(err)
	}
	return line
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	n, ref := newRunNode(t)
	line := n.timelineOf(ref, "--background=off") // which on a busy machine may bring all before it is read
	if line.Version != timelineVersion || line.ReadyMs == nil || *line.ReadyMs <= 0 || line.Mode != "fanotify" || line.Index != "registry" ||
		!strings.HasPrefix(line.Manifest, "sha256:") || time.Since(line.Begun) > patience {
		t.Errorf("timeline %+v", line)
	}
	line.checkPhases(t, "resolve", "index", "mount", "create", "start", "ready")
	c := line.AtReady
	// Quantiles are off by 3 %.
	if c == nil || c.ImageBytes <= 0 || c.LayerBytes <= 0 || c.NetworkBytes <= c.LayerBytes/2 || c.Requests <= 0 ||
		c.Waits <= 0 || c.WaitP50Ms <= 0 || c.WaitP99Ms < c.WaitP50Ms || c.WaitTotalMs*1.05 < c.WaitP99Ms || c.SharePercent <= 0 {
		t.Errorf("cost %+v", c)
	}
	if b, _ := os.ReadFile(n.path("timeline.json")); !strings.Contains(string(b), "\n  \"ready_ms\": ") {
		t.Errorf("no ready_ms at the top of %s", b)
	}

	path := n.path("until-complete.json")
	p := n.launch(append([]string{"--timeline", "--timeline-file", path}, shell(ref, loop(`trap "exit 0" TERM`))...)...)
	p.prints("up\n")
	if !p.err.wait("is complete and proven", p.done) {
		t.Errorf("no word of completion: %s", p.err)
	}
	p.signal(unix.SIGTERM)
	if r := p.wait(); r.code != 0 || !strings.Contains(r.stderr, "phase") {
		t.Error(r)
	}
	line = n.readTimeline(path)
	if line.CompleteMs == nil || line.AtEnd == nil || line.AtEnd.HereBytes != line.AtEnd.UnpackedBytes || line.ReadyMs != nil {
		t.Errorf("timeline %+v", line)
	}
	line.checkPhases(t, "resolve", "index", "mount", "create", "start", "complete")
}

func (line timelineJSON) checkPhases(t *testing.T, names ...string) {
	t.Helper()
	var got []string
	at := 0.0
	for _, p := range line.Phases {
		got = append(got, p.Name)
		if p.EndMs < p.StartMs || p.StartMs < at && p.Name != phaseComplete {
			t.Errorf("phase %+v starts before %v ms", p, at)
		}
		at = p.StartMs
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("phases %v, want %v", got, names)
	}
}
