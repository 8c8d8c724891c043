package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestStoppedDuringUpgrade: a daemon that is told to end while an upgrade waits for
// starts ends, and becomes no other program.
func TestStoppedDuringUpgrade(t *testing.T) {
	for _, stopped := range []bool{true, false} {
		d := openDaemon(t, t.TempDir())
		synctest.Test(t, func(t *testing.T) {
			var stop context.CancelFunc
			d.ctx, stop = context.WithCancel(t.Context())
			defer stop()
			started := d.start()
			done := make(chan error, 1)
			go func() { done <- d.prepareUpgrade(t.Context(), "/other") }()
			synctest.Wait() // for the start
			if stopped {
				stop()
			}
			started()
			err := <-done
			if stopped && (!errors.Is(err, errLeaving) || d.upgrade != "" || !d.leaving) {
				t.Errorf("stopped: %v, upgrade to %q", err, d.upgrade)
			}
			if !stopped && (err != nil || d.upgrade != "/other") {
				t.Errorf("not stopped: %v, upgrade to %q", err, d.upgrade)
			}
		})
	}
}
