package tracefs

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	tests := []struct {
		name, line string
		want       Event
		bad        bool
	}{
		{"exec", "            node-4711    [001] d..21  1234.000567: sched_process_exec: filename=/usr/bin/node pid=4711 old_pid=4712",
			Event{At: 1234*time.Second + 567*time.Microsecond, Kind: Exec, Thread: 4711, Child: 4712, Name: "/usr/bin/node"}, false},
		{"exec of a strange name", "            node-4711    [001] d..21  1.000000: sched_process_exec: filename=/a pid=1 old_pid=2: x pid=4711 old_pid=4711",
			Event{At: time.Second, Kind: Exec, Thread: 4711, Child: 4711, Name: "/a pid=1 old_pid=2: x"}, false},
		{"fork", "         x: -1 [-42      [000] d..21     0.000001: sched_process_fork: comm=x child_pid=9 pid=42 child_comm=y child_pid=43",
			Event{At: time.Microsecond, Kind: Fork, Thread: 42, Child: 43}, false},
		{"exit", "            true-43      [000] d..21     7.100000: sched_process_exit: comm=true pid=43 prio=120 group_dead=true",
			Event{At: 7100 * time.Millisecond, Kind: Exit, Thread: 43}, false},
		{"listen", "            node-42      [000] ...11     2.500000: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=8080 dport=0 saddr=127.0.0.1 daddr=0.0.0.0 saddrv6=:: daddrv6=:: oldstate=TCP_CLOSE newstate=TCP_LISTEN",
			Event{At: 2500 * time.Millisecond, Kind: Listen, Thread: 42, Port: 8080}, false},
		{"connection", "          <idle>-0       [000] ..s21     2.500000: inet_sock_set_state: family=AF_INET protocol=IPPROTO_TCP sport=8080 dport=40000 saddr=127.0.0.1 daddr=0.0.0.0 saddrv6=:: daddrv6=:: oldstate=TCP_SYN_RECV newstate=TCP_ESTABLISHED",
			Event{At: 2500 * time.Millisecond, Kind: Established, Port: 8080}, false},
		{"accept", "            node-42      [000] .....     2.500000: sys_accept4 -> 0x5", Event{At: 2500 * time.Millisecond, Kind: Accept, Thread: 42}, false},
		{"accept without result", "            node-42      [000] .....     2.500000: sys_accept4 -> ", Event{}, true},
		{"another call", "            node-42      [000] .....     2.500000: sys_read -> 0x5", Event{}, true},
		{"another event", "            node-42      [000] .....     2.500000: sched_switch: x", Event{}, true},
		{"no time", "            node-42      [000] .....     2: sched_process_exit: comm=true", Event{}, true},
		{"empty", "", Event{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, is := parse(tt.line)
			if (is != yes) != tt.bad {
				t.Fatalf("parsed: %v", is)
			}
			if !tt.bad && got != tt.want {
				t.Error(cmp.Diff(tt.want, got))
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("            node-4711    [001] d..21  1234.000567: sched_process_exec: filename=/usr/bin/node pid=4711 old_pid=4711")
	f.Add("            node-42      [000] .....     2.500000: sys_accept4 -> 0x5")
	f.Fuzz(func(t *testing.T, text string) {
		var j joiner
		for line := range strings.SplitSeq(text, "\n") {
			e, ok := j.take(line)
			if ok && (e.Kind == 0 || e.At < 0 || e.Thread < 0 || e.Child < 0 || e.Port < 0) {
				t.Errorf("%q gives %+v", line, e)
			}
			if len(j.text) > maxJoined {
				t.Errorf("%d bytes are kept", len(j.text))
			}
		}
	})
}

// TestJoin: programs whose names have ends of lines in them, also such as look like events.
func TestJoin(t *testing.T) {
	const text = `            node-4711    [001] d..21  1.000000: sched_process_exec: filename=/a
            evil-4711    [001] ...11  1.000000: inet_sock_set_state: sport=80 newstate=TCP_LISTEN
b pid=4711 old_pid=4711
           a
b c-4711    [001] d..21  2.000000: sched_process_fork: comm=a
b pid=4711 child_comm=a
b child_pid=4712
           a
b c-4712    [001] d..21  3.000000: sched_process_exit: comm=a
b pid=4712 prio=120 group_dead=true
            true-43      [000] d..21  4.000000: sched_process_exit: comm=true pid=43 prio=120 group_dead=true
no event
            node-4711    [001] d..21  5.000000: sched_process_exec: filename=/c pid=4711 old_pid=4711`
	var got []Event
	var j joiner
	for line := range strings.SplitSeq(text, "\n") {
		if e, ok := j.take(line); ok {
			got = append(got, e)
		}
	}
	want := []Event{
		{At: time.Second, Kind: Exec, Thread: 4711, Child: 4711, Name: "/a\n            evil-4711    [001] ...11  1.000000: inet_sock_set_state: sport=80 newstate=TCP_LISTEN\nb"},
		{At: 2 * time.Second, Kind: Fork, Thread: 4711, Child: 4712},
		{At: 3 * time.Second, Kind: Exit, Thread: 4712},
		{At: 4 * time.Second, Kind: Exit, Thread: 43},
		{At: 5 * time.Second, Kind: Exec, Thread: 4711, Child: 4711, Name: "/c"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for range 10_000 { // what never becomes one is let go of
		j.take(strings.Repeat("x", 100))
	}
	if len(j.text) > maxJoined {
		t.Errorf("%d bytes are kept", len(j.text))
	}
	if _, ok := j.take("            true-43      [000] d..21  4.000000: sched_process_exit: comm=true pid=43"); !ok {
		t.Error("no event after that")
	}
}

// TestFollow: threads, a thread that becomes its process, a number that came again,
// what others do.
func TestFollow(t *testing.T) {
	at := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	all := []Event{
		{At: at(1), Kind: Exec, Thread: 10, Child: 10, Name: "/former"},
		{At: at(2), Kind: Exit, Thread: 10},
		{At: at(3), Kind: Fork, Thread: 5, Child: 10},
		{At: at(5), Kind: Exec, Thread: 10, Child: 10, Name: "/app"},
		{At: at(6), Kind: Fork, Thread: 10, Child: 11}, // a thread
		{At: at(7), Kind: Fork, Thread: 11, Child: 12}, // it makes a process
		{At: at(8), Kind: Exec, Thread: 12, Child: 12, Name: "/tool"},
		{At: at(9), Kind: Exec, Thread: 77, Child: 77, Name: "/other"},
		{At: at(10), Kind: Exit, Thread: 12},
		{At: at(11), Kind: Listen, Thread: 77, Port: 80},
		{At: at(12), Kind: Exit, Thread: 10},
		{At: at(13), Kind: Exec, Thread: 10, Child: 11, Name: "/next"}, // by the thread
		{At: at(14), Kind: Listen, Thread: 10, Port: 90},
		{At: at(15), Kind: Fork, Thread: 6, Child: 10}, // after it was followed: another one
		{At: at(16), Kind: Exec, Thread: 10, Child: 10, Name: "/another"},
		{At: at(17), Kind: Listen, Thread: 10, Port: 80},
	}
	got := Follow(all, 10, at(4))
	want := &Followed{Executed: at(5), Program: "/app",
		Processes: []Process{{Pid: 10, Parent: 5, Name: "/app", Start: at(5), End: at(12)}, {Pid: 12, Parent: 11, Name: "/tool", Start: at(8), End: at(10)},
			{Pid: 10, Parent: 5, Name: "/next", Start: at(13)}},
		Listens: []Event{{At: at(14), Kind: Listen, Thread: 10, Port: 90}}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if e, ok := got.Listen(90); !ok || e.Thread != 10 {
		t.Error("port 90 does not listen")
	}
	if _, ok := got.Listen(80); ok {
		t.Error("another's port listens")
	}
}
