package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/measure/gate"
)

// errObserverGone ends a run that was made for somebody who is no more.
var errObserverGone = errors.New("who observed this run is gone")

// openGate opens the way to who observes this run; nil where nobody does.
func (o *runOptions) openGate() (*gate.Conn, error) {
	if o.observer < 0 {
		return nil, nil
	}
	return gate.Inherited(o.observer)
}

// passGate has the observer look at the container's root before anything is opened in it.
func (r *runner) passGate() error {
	if r.gate == nil {
		return nil
	}
	if err := r.gate.Send(gate.Message{Mounted: &gate.Mounted{ID: r.mount.ID, Dir: r.mount.Dir, Bundle: r.mount.Bundle, Config: r.mount.Config}}); err != nil {
		return err
	}
	m, err := r.gate.Receive()
	if err == nil && !m.Go {
		err = fmt.Errorf("the observer says %+v, and not to go on", m)
	}
	return err
}

// tellCreated says which process the container's first one is.
func (r *runner) tellCreated() {
	if r.gate == nil {
		return
	}
	b, err := os.ReadFile(filepath.Join(r.mount.Bundle, "pid"))
	if err != nil {
		return // the observer does without
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		_ = r.gate.Send(gate.Message{Created: &gate.Created{Pid: pid}}) // its being gone is seen when it is waited for
	}
}

// watchObserved is watch for a run whose observer says when the container is ready.
// When the observer is gone nobody wants the container any more.
func (r *runner) watchObserved(ctx context.Context, stop context.CancelCauseFunc) {
	ready, gone := make(chan time.Time, 1), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			m, err := r.gate.Receive()
			if err != nil {
				if ctx.Err() == nil {
					stop(errObserverGone)
				}
				return
			}
			if !m.Ready.IsZero() {
				select {
				case ready <- m.Ready:
				default: // it was said before
				}
			}
		}
	}()
	defer func() {
		r.gate.Close()
		<-gone
	}()
	select {
	case at := <-ready:
		r.mark(phaseReady, at)
		r.tell(ctx)
	case <-ctx.Done():
		return
	}
	r.snapshot(ctx)
	r.follow(ctx)
	<-ctx.Done()
}
