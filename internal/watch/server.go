package watch

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/metrics"
)

// version is the version of all JSON that is answered.
const version = 1

// retryAfter is when a sender is told to come again: an image takes seconds to
// minutes.
const retryAfter = 30 * time.Second

// maxWait bounds how long an answer waits for what becomes of the images.
const maxWait = 10 * time.Minute

// Serve takes notifications at l, and works, until ctx ends; then it takes no
// more and finishes what is in the queue, as far as Options.Drain and kill (which
// ends all work at once) let it. What is left is the next process'. A nil config
// is plain http.
func (w *Watcher) Serve(ctx context.Context, l net.Listener, config *tls.Config, kill <-chan struct{}) error {
	if config != nil {
		l = tls.NewListener(l, config)
	}
	server := &http.Server{
		Handler: w.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: w.readTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(w.opts.Log.Handler(), slog.LevelDebug),
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var working sync.WaitGroup
	for range w.opts.Workers {
		working.Go(func() { w.work(work) })
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	w.ending.Store(true)
	close(w.drain)
	drained := make(chan struct{})
	go func() { working.Wait(); close(drained) }()
	if n := w.Queued(); n > 0 {
		w.opts.Log.Info("ending; finishing what is in the queue", "images", n, "at_most", w.opts.Drain)
	}
	timer := time.NewTimer(w.opts.Drain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	case <-kill:
	}
	stop()
	<-drained
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(grace) != nil {
		_ = server.Close() // whoever still waits for an answer has none
	}
	if n := w.Queued(); n > 0 {
		w.opts.Log.Warn("images are left for the next process", "images", n)
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// Handler answers notifications, and questions.
func (w *Watcher) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /notify", w.authorized(w.serveNotify))
	mux.HandleFunc("GET /status", w.authorized(w.serveStatus))
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) {
		if w.ending.Load() {
			http.Error(rw, "ending", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(rw, "ok\n") // the client is gone: nobody to tell
	})
	mux.Handle("GET /metrics", metrics.Handler(w.gather))
	// Without a secret a page in a browser of this machine could be the sender.
	return http.NewCrossOriginProtection().Handler(mux)
}

func sum(s string) []byte {
	d := sha256.Sum256([]byte(s))
	return d[:]
}

// authorized lets through what brings a secret: as a bearer token, as the whole
// Authorization header (Harbor), or as the password of basic authentication. The
// time that the comparison takes says nothing about a secret, its length included.
func (w *Watcher) authorized(next http.HandlerFunc) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		given := r.Header.Get("Authorization")
		if scheme, token, ok := strings.Cut(given, " "); ok && strings.EqualFold(scheme, "Bearer") {
			given = strings.TrimSpace(token)
		} else if _, password, ok := r.BasicAuth(); ok {
			given = password
		}
		ok := len(w.secrets) == 0
		for _, s := range w.secrets {
			ok = subtle.ConstantTimeCompare(sum(given), s) == 1 || ok
		}
		if !ok {
			w.counts.denied.Add(1)
			w.opts.Log.Warn("request without the secret", "from", r.RemoteAddr, "path", r.URL.Path)
			rw.Header().Set("WWW-Authenticate", `Bearer realm="thaw index watch"`)
			writeError(rw, http.StatusUnauthorized, "want the secret as Authorization: Bearer SECRET")
			return
		}
		next(rw, r)
	}
}

// answer is what a notification is answered with.
type answer struct {
	Version int       `json:"version"`
	Format  string    `json:"format"`
	Images  []Outcome `json:"images"`
}

func (w *Watcher) serveNotify(rw http.ResponseWriter, r *http.Request) {
	var wait time.Duration
	if s := r.URL.Query().Get("wait"); s != "" {
		var err error
		if wait, err = time.ParseDuration(s); err != nil || wait < 0 || wait > maxWait {
			writeError(rw, http.StatusBadRequest, "wait: want a duration of at most "+maxWait.String())
			return
		}
	}
	b, ok := w.body(rw, r)
	if !ok {
		return
	}
	format, events, err := Decode(b, w.opts.Registry)
	if err != nil {
		w.counts.event(FormatUnknown, Outcome{Reason: ReasonMalformed})
		w.opts.Log.Warn("notification is not understood", "from", r.RemoteAddr, "err", err)
		writeError(rw, http.StatusBadRequest, err.Error())
		return
	}
	images, items, err := w.take(events)
	if err != nil {
		w.refuse(rw, r, err)
		return
	}
	for _, o := range images {
		w.counts.event(format, o)
		w.opts.Log.Debug("event", "format", format, "image", o.Image, "result", o.Result, "reason", o.Reason, "detail", o.Detail)
	}
	out := answer{Version: version, Format: format, Images: images}
	if wait > 0 {
		out.Images = w.await(r, wait, out.Images, items)
	}
	writeJSON(rw, http.StatusAccepted, out)
}

// body reads a request's body; where it cannot be had it has answered.
func (w *Watcher) body(rw http.ResponseWriter, r *http.Request) ([]byte, bool) {
	select {
	case w.taking <- struct{}{}:
		defer func() { <-w.taking }()
	default:
		w.counts.refused.Add(1)
		again(rw, time.Second)
		writeError(rw, http.StatusServiceUnavailable, "too many notifications at once")
		return nil, false
	}
	if w.ending.Load() {
		again(rw, retryAfter)
		writeError(rw, http.StatusServiceUnavailable, "ending")
		return nil, false
	}
	b, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		writeError(rw, http.StatusRequestEntityTooLarge, "more than "+strconv.Itoa(maxBody)+" bytes")
		return nil, false
	case err != nil:
		writeError(rw, http.StatusBadRequest, "read body: "+err.Error())
		return nil, false
	}
	return b, true
}

// refuse has the sender come again with all of the notification.
func (w *Watcher) refuse(rw http.ResponseWriter, r *http.Request, err error) {
	w.counts.refused.Add(1)
	w.opts.Log.Warn("notification is refused", "from", r.RemoteAddr, "err", err)
	again(rw, retryAfter)
	writeError(rw, http.StatusServiceUnavailable, err.Error())
}

func again(rw http.ResponseWriter, after time.Duration) {
	rw.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
}

// await returns what became of the images, where that is known in time.
func (w *Watcher) await(r *http.Request, wait time.Duration, first []Outcome, items []*item) []Outcome {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	over := false
	out := make([]Outcome, 0, len(first))
	for i, it := range items {
		if it != nil && !over {
			select {
			case <-it.done:
			case <-timer.C:
				over = true
			case <-r.Context().Done():
				over = true
			}
		}
		select {
		case <-doneOf(it):
			out = append(out, it.outcomes...)
		default:
			out = append(out, first[i])
		}
	}
	return out
}

func doneOf(it *item) chan struct{} {
	if it == nil {
		return nil
	}
	return it.done
}

func (w *Watcher) serveStatus(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	recent := append([]Outcome{}, w.recent...)
	w.mu.Unlock()
	writeJSON(rw, http.StatusOK, struct {
		Version int       `json:"version"`
		Limit   int       `json:"limit"`
		Queue   []waiting `json:"queue"`
		Recent  []Outcome `json:"recent"`
	}{version, w.opts.Queue, w.queue.list(), recent})
}

func writeError(rw http.ResponseWriter, status int, message string) {
	writeJSON(rw, status, struct {
		Version int    `json:"version"`
		Error   string `json:"error"`
	}{version, message})
}

func writeJSON(rw http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.WriteHeader(status)
	_, _ = rw.Write(append(b, '\n')) // the client is gone: nobody to tell
}
