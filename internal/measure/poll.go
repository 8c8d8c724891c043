package measure

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/measure/clock"
)

// pollEvery is how often /proc is looked at, where there is nothing better.
const pollEvery = 2 * time.Millisecond

// poll looks until a port of a process's network listens.
type poll struct {
	pid, port  int
	stop, done chan struct{}

	mu     sync.Mutex    // guards what follows
	looked time.Duration // when it did not listen yet, the last time
	at     time.Duration // when it did; 0: it does not
}

func pollListen(pid, port int) *poll {
	p := &poll{pid: pid, port: port, stop: make(chan struct{}), done: make(chan struct{}), looked: clock.Now()}
	go p.run()
	return p
}

func (p *poll) run() {
	defer close(p.done)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for !p.look() {
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
	}
}

// look looks once, unless it is known, and reports whether it is.
func (p *poll) look() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at > 0 {
		return true
	}
	begun := clock.Now()
	for _, name := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.pid, name))
		if err == nil && listens(b, p.port) {
			p.at = clock.Now()
			return true
		}
	}
	p.looked = begun
	return false
}

// found looks once more, for on a busy machine it may not have come to it, and returns
// when the port listened, and by how much that may be too late.
func (p *poll) found() (at, late time.Duration) {
	if !p.look() {
		return 0, 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at, p.at - p.looked
}

func (p *poll) close() {
	close(p.stop)
	<-p.done
}

// listens finds a listening port in /proc/PID/net/tcp: a header, then lines of
// "N: ADDRESS:PORT ADDRESS:PORT STATE ...", in hexadecimal.
func listens(b []byte, port int) bool {
	const listening = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) > 3 && f[3] == listening && strings.HasSuffix(f[1], suffix) {
			return true
		}
	}
	return false
}
