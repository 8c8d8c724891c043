// Command probe is what the tests run in a container: it says what it sees.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	if len(args) == 0 {
		os.Exit(90)
	}
	if err := run(args[0], args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(91)
	}
}

// view is what the container looks like from inside.
type view struct {
	Args       []string
	Env        []string
	UID, GID   int
	Groups     []int
	Cwd        string
	Hostname   string
	Interfaces []string
	Status     map[string]string // CapEff and others of /proc/self/status
	Cgroup     string
	Files      map[string]string
	Kcore      int // bytes readable
}

func run(verb string, args []string) error {
	switch verb {
	case "view":
		return show(args)
	case "exit":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(n)
	case "die":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return dieOf(syscall.Signal(n))
	case "wait": // for a signal, and say which
		c := make(chan os.Signal, 8)
		signal.Notify(c)
		signal.Ignore(syscall.SIGURG)
		fmt.Println("waiting")
		sig := (<-c).(syscall.Signal)
		fmt.Println("got", int(sig))
		os.Exit(40)
	case "deaf": // to all signals that can be ignored
		signal.Ignore()
		fmt.Println("waiting")
		forever()
	case "sleep":
		forever()
	case "spawn": // leave a child behind
		c := exec.Command("/bin/probe", "sleep")
		if err := c.Start(); err != nil {
			return err
		}
		fmt.Println("waiting")
		if args[0] == "stay" {
			return c.Wait()
		}
	case "echo":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "say":
		fmt.Println("out")
		fmt.Fprintln(os.Stderr, "err")
	case "write":
		return os.WriteFile(args[0], []byte("x"), 0o644)
	case "tty":
		return terminal()
	case "calls":
		return calls()
	}
	return nil
}

// forever is a select without cases that the Go runtime does not take for a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// dieOf has a child of this process killed, for the first of a container cannot
// kill itself, and ends like it.
func dieOf(sig syscall.Signal) error {
	c := exec.Command("/bin/probe", "sleep")
	if err := c.Start(); err != nil {
		return err
	}
	if err := c.Process.Signal(sig); err != nil {
		return err
	}
	c.Wait()
	os.Exit(128 + int(c.ProcessState.Sys().(syscall.WaitStatus).Signal()))
	return nil
}

// calls says how system calls end that the seccomp profile decides about. Without
// one they would end otherwise, or are harmless.
func calls() error {
	const clone3, vsock, alg, inet, persona = 435, 40, 38, syscall.AF_INET, syscall.SYS_PERSONALITY
	out := map[string]int{}
	for name, c := range map[string][3]uintptr{
		"getpid":               {syscall.SYS_GETPID},
		"keyctl":               {syscall.SYS_KEYCTL},
		"clone3":               {clone3},
		"unshare user":         {syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER},
		"socket vsock":         {syscall.SYS_SOCKET, vsock, syscall.SOCK_STREAM},
		"socket alg":           {syscall.SYS_SOCKET, alg, syscall.SOCK_SEQPACKET},
		"socket inet":          {syscall.SYS_SOCKET, inet, syscall.SOCK_STREAM},
		"personality linux":    {persona, 0},
		"personality query":    {persona, 0xffffffff},
		"personality norandom": {persona, 0x40000},
		"add_key":              {syscall.SYS_ADD_KEY},
	} {
		_, _, errno := syscall.Syscall(c[0], c[1], c[2], 0)
		out[name] = int(errno)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func terminal() error {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
			return fmt.Errorf("%s is no terminal: %v", f.Name(), err)
		}
	}
	if _, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
		return err
	}
	fmt.Println("hello")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Println("read", strings.TrimSpace(line))
	return nil
}

func show(files []string) error {
	v := view{Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(), Status: map[string]string{}, Files: map[string]string{}}
	v.Groups, _ = os.Getgroups()
	slices.Sort(v.Groups)
	v.Cwd, _ = os.Getwd()
	v.Hostname, _ = os.Hostname()
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		v.Interfaces = append(v.Interfaces, fmt.Sprint(i.Name, " ", i.Flags&net.FlagUp != 0))
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		v.Status[key] = strings.TrimSpace(value)
	}
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	v.Cgroup = string(cgroup)
	kcore, _ := os.ReadFile("/proc/kcore")
	v.Kcore = len(kcore)
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			b = []byte("error: " + err.Error())
		}
		v.Files[path] = string(b)
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}
