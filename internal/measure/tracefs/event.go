package tracefs

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is what happened.
type Kind int

// Kinds of events.
const (
	Fork        Kind = iota + 1 // Thread made the process or thread Child
	Exec                        // process Thread runs the program Name; Child is the thread that it was
	Exit                        // Thread ended
	Listen                      // Thread had Port listen
	Established                 // a connection to Port was made; Thread says nothing
	Accept                      // Thread took a connection
)

// Event is one of them. Threads and processes have the numbers of the machine's
// first namespace.
type Event struct {
	At     time.Duration // of the monotonic clock
	Kind   Kind
	Thread int
	Child  int
	Name   string // as the kernel was given it
	Port   int
}

// nameColumns is the width of the name that begins a line; it may have anything in it.
const nameColumns = 16

// whether a text is an event.
type whether int

const (
	no   whether = iota
	part         // the beginning of one: a name in it has the end of a line
	yes
)

// parse reads a line of trace_pipe:
//
//	NAME(16)-THREAD [CPU] FLAGS SECONDS.MICROSECONDS: EVENT: FIELDS
//
// A system call's end has no fields, but `sys_NAME -> RESULT`. Names of programs are
// written as they are, and may have ends of lines in them: what is such an event's part,
// or no event, has to be tried again with the next line.
func parse(line string) (Event, whether) {
	var e Event
	if len(line) <= nameColumns || line[nameColumns] != '-' {
		return e, no
	}
	fields := strings.SplitN(line[nameColumns+1:], ": ", 3)
	head := strings.Fields(fields[0])
	if len(fields) < 2 || len(head) < 3 {
		return e, no
	}
	var err error
	if e.Thread, err = strconv.Atoi(head[0]); err != nil || e.Thread < 0 {
		return e, no
	}
	var ok bool
	if e.At, ok = parseTime(head[len(head)-1]); !ok {
		return e, no
	}
	if call, result, isCall := strings.Cut(fields[1], " -> "); isCall {
		return e.call(call, result)
	}
	if len(fields) < 3 {
		return e, no
	}
	return e.known(fields[1], fields[2])
}

// joiner puts events together that have ends of lines in them.
type joiner struct {
	text string // of lines that are no event yet
	part bool   // it is the beginning of one
}

// maxJoined bounds what is put together: a name, which has 4096 bytes at most, and what
// is around it.
const maxJoined = 8 << 10

// take takes a line, and reports whether it ends an event.
func (j *joiner) take(line string) (Event, bool) {
	var e Event
	is := no
	if !j.part { // else it belongs to what began, whatever it looks like
		e, is = parse(line)
	}
	if is != yes && j.text != "" {
		line = j.text + "\n" + line
		e, is = parse(line)
	}
	if is == yes || len(line) > maxJoined {
		line = ""
	}
	j.text, j.part = line, is == part
	return e, is == yes
}

// parseTime reads seconds with six digits behind the point.
func parseTime(s string) (time.Duration, bool) {
	sec, micro, ok := strings.Cut(s, ".")
	a, err := strconv.ParseUint(sec, 10, 32)
	b, err2 := strconv.ParseUint(micro, 10, 20)
	if !ok || err != nil || err2 != nil || len(micro) != 6 {
		return 0, false
	}
	return time.Duration(a)*time.Second + time.Duration(b)*time.Microsecond, true
}

func (e Event) call(name, result string) (Event, whether) {
	e.Kind = Accept
	n, err := strconv.ParseInt(result, 0, 64)
	if err != nil || n < 0 || name != "sys_accept4" && name != "sys_accept" {
		return e, no
	}
	return e, yes
}

func (e Event) known(name, fields string) (Event, whether) {
	var ok bool
	switch name {
	case "sched_process_fork":
		e.Kind = Fork
		at := strings.LastIndex(fields, childKey)
		if at < 0 {
			return e, part
		}
		e.Child, ok = whole(fields[at+len(childKey):])
	case "sched_process_exec":
		e.Kind = Exec
		// What is between may have anything in it, and is the container's.
		rest, found := strings.CutPrefix(fields, "filename=")
		at := strings.LastIndex(rest, " pid=")
		if !found || at < 0 {
			return e, part
		}
		pid, old, _ := strings.Cut(rest[at+len(" pid="):], " old_pid=")
		thread, isPid := whole(pid)
		e.Name = rest[:at]
		e.Child, ok = whole(old)
		ok = ok && isPid && thread == e.Thread
	case "sched_process_exit":
		e.Kind = Exit
		return e, yes
	case "inet_sock_set_state":
		e.Kind = Established
		if strings.HasSuffix(fields, " newstate=TCP_LISTEN") {
			e.Kind = Listen
		}
		if e.Port, ok = lastNumber(fields, " sport="); !ok {
			return e, no
		}
	default:
		return e, no
	}
	if !ok {
		return e, part
	}
	return e, yes
}

// childKey is the last key of a fork.
const childKey = " child_pid="

// whole reads one that is all of a text.
func whole(s string) (int, bool) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil && n >= 0
}

// lastNumber reads the number behind the last one of a key.
func lastNumber(s, key string) (int, bool) {
	at := strings.LastIndex(s, key)
	if at < 0 {
		return 0, false
	}
	s, _, _ = strings.Cut(s[at+len(key):], " ")
	return whole(s)
}

// Process is a program that ran, from its execution to the next one or its end.
type Process struct {
	Pid, Parent int
	Name        string
	Start, End  time.Duration // End 0: it runs on
}

// Followed is what belongs to one container.
type Followed struct {
	Executed  time.Duration // of its program; 0: not seen
	Program   string
	Processes []Process // by start
	Listens   []Event   // by time
	Accepts   []Event
}

// Listen returns when a port began to listen, the first one where port is 0.
func (f *Followed) Listen(port int) (Event, bool) {
	at := slices.IndexFunc(f.Listens, func(e Event) bool { return port == 0 || e.Port == port })
	if at < 0 {
		return Event{}, false
	}
	return f.Listens[at], true
}

// Follow finds in all events of the machine those of the process that had the number
// pid at a time, and of what that made. Numbers come again.
func Follow(all []Event, pid int, at time.Duration) *Followed {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	f := newFollower(pid)
	for _, e := range all {
		if e.Kind == Fork && e.Child == pid && e.At <= at {
			f = newFollower(pid) // what had the number before was another
			f.parents[pid] = e.Thread
			continue
		}
		f.take(e, pid)
	}
	return f.Followed
}

func newFollower(pid int) *follower {
	return &follower{threads: map[int]bool{pid: true}, parents: map[int]int{}, running: map[int]int{}, Followed: &Followed{}}
}

type follower struct {
	*Followed
	threads map[int]bool
	parents map[int]int // of processes and threads
	running map[int]int // processes' places in Processes
}

func (f *follower) take(e Event, pid int) {
	if e.Kind == Exec && !f.threads[e.Thread] && f.threads[e.Child] {
		f.threads[e.Thread] = true // a thread that became its process
	}
	if !f.threads[e.Thread] {
		if e.Kind == Fork && f.threads[e.Child] { // a number that comes again is another's
			delete(f.threads, e.Child)
		}
		return
	}
	switch e.Kind {
	case Fork:
		f.threads[e.Child] = true
		f.parents[e.Child] = e.Thread
	case Exec:
		if e.Thread == pid && f.Executed == 0 {
			f.Executed, f.Program = e.At, e.Name
		}
		f.end(e)
		f.running[e.Thread] = len(f.Processes)
		f.Processes = append(f.Processes, Process{Pid: e.Thread, Parent: f.parents[e.Thread], Name: e.Name, Start: e.At})
	case Exit:
		f.end(e)
		if e.Thread != pid {
			delete(f.threads, e.Thread)
		}
	case Listen:
		f.Listens = append(f.Listens, e)
	case Accept:
		f.Accepts = append(f.Accepts, e)
	}
}

func (f *follower) end(e Event) {
	if at, ok := f.running[e.Thread]; ok {
		f.Processes[at].End = e.At
		delete(f.running, e.Thread)
	}
}
