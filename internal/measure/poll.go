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
	stop, done chan struct{}

	mu sync.Mutex // guards at
	at time.Duration
}

func pollListen(pid, port int) *poll {
	p := &poll{stop: make(chan struct{}), done: make(chan struct{})}
	go p.run(pid, port)
	return p
}

func (p *poll) run(pid, port int) {
	defer close(p.done)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		for _, name := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
			if err == nil && listens(b, port) {
				p.mu.Lock()
				p.at = clock.Now()
				p.mu.Unlock()
				return
			}
		}
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
	}
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

func (p *poll) found() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

func (p *poll) close() {
	close(p.stop)
	<-p.done
}
