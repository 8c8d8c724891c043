package registry

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPatience: who tries again by itself is told soon, is never failed because
// others gave up, and waits no longer than it wants for a server that asks it to.
func TestPatience(t *testing.T) {
	const giveUp, maxPause = 2 * time.Second, 3 * time.Second
	for _, c := range []struct {
		name   string
		refuse func(w http.ResponseWriter)
	}{
		{"503", func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }},
		{"429", func(w http.ResponseWriter) { w.WriteHeader(http.StatusTooManyRequests) }},
		{"429 for a year", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", strconv.Itoa(365*24*3600))
			w.WriteHeader(http.StatusTooManyRequests)
		}},
		{"web page", func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Write([]byte(strings.Repeat("<html>be right back</html>", 100)))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				reg := newFakeRegistry()
				d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(100_000))
				down := true
				w.serve("localhost:5000", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
					if down {
						c.refuse(rw)
						return
					}
					reg.ServeHTTP(rw, r)
				}))
				client := w.client(Options{})
				repo := w.repo(client, "localhost:5000/a/b")
				read := func() (time.Duration, error) {
					begun := time.Now()
					_, err := readRange(WithPatience(t.Context(), giveUp, maxPause), repo, d, 10, 1000)
					return time.Since(begun), err
				}
				for range 5 {
					took, err := read()
					if err == nil || took > giveUp+maxPause {
						t.Errorf("took %v: %v", took, err)
					}
				}
				if repo.(*remote).NoRanges() {
					t.Error("a registry that is down is taken for one without ranges")
				}
				if _, gone := repo.(*remote).origin().gone(time.Hour); gone {
					t.Error("others are failed because this caller gave up")
				}
				down = false
				for _, most := range []time.Duration{maxPause, 0, 0} { // the pause is asked for no more
					if took, err := read(); err != nil || took > most {
						t.Errorf("after it is back: took %v: %v", took, err)
					}
				}
			})
		})
	}
}

// TestPatienceIsNotFailed: a registry that others have given up is asked all the
// same.
func TestPatienceIsNotFailed(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		reg := newFakeRegistry()
		d := reg.addBlob(t, "a/b", v1.MediaTypeImageLayer, randomBytes(100_000))
		stop := w.serve("localhost:5000", reg)
		repo := w.repo(w.client(Options{}), "localhost:5000/a/b")
		stop()
		if _, err := readRange(t.Context(), repo, d, 0, 1000); err == nil {
			t.Fatal("there is no registry")
		}
		w.serve("localhost:5000", reg)
		if _, err := readRange(t.Context(), repo, d, 0, 1000); err == nil || !strings.Contains(err.Error(), "gone") {
			t.Errorf("without patience of its own: %v", err)
		}
		if _, err := readRange(WithPatience(t.Context(), time.Second, time.Second), repo, d, 0, 1000); err != nil {
			t.Error(err)
		}
	})
}
