package fanotify

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/mount/fanotify/group"
)

// queue hands requests, in their order, to at most a number of workers. Workers come when there is work and go when
// there is none.
type queue struct {
	do      func(request)
	workers int
	limit   int

	mu       sync.Mutex // guards what follows
	room     sync.Cond  // fewer than limit requests wait
	idle     sync.Cond  // no worker runs
	requests []request
	running  int
}

func (q *queue) init(workers, limit int, do func(request)) {
	q.workers, q.limit, q.do = workers, limit, do
	q.room.L, q.idle.L = &q.mu, &q.mu
}

// maxPending is how many reads may wait in this process: each has a descriptor, and some must be left for everything else. More wait in
// the kernel.
func maxPending() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > group.MaxFiles {
		return group.MaxFiles / 2
	}
	return max(int(limit.Cur)/2, 1)
}

// put adds a request. It waits while there are too many.
func (q *queue) put(r request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.requests) >= q.limit {
		q.room.Wait()
	}
	q.requests = append(q.requests, r)
	if q.running < q.workers {
		q.running++
		go q.work()
	}
}

func (q *queue) work() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.requests) > 0 {
		r := q.requests[0]
		q.requests = q.requests[1:]
		q.room.Signal()
		q.mu.Unlock()
		q.do(r)
		q.mu.Lock()
	}
	q.requests = nil // lets go of the array
	q.running--
	if q.running == 0 {
		q.idle.Broadcast()
	}
}

// wait returns when nothing is left to do. Nobody puts meanwhile.
func (q *queue) wait() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.running > 0 {
		q.idle.Wait()
	}
}
