package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/profilestore"
	"github.com/thaw-project/thaw/internal/report"
)

const (
	// maxStarts is how many starts the page has, and how many records of the daemon's own
	// are read for it.
	maxStarts = 1000
	// maxListeners is how many pages may listen at once, and maxBehind how many starts one
	// of them may be behind: it is sent away then, and connects anew.
	maxListeners = 16
	maxBehind    = 64
)

// web shows this daemon's starts. It is there only if it was asked for.
type web struct {
	d     *Daemon
	store *profilestore.Store

	mu        sync.Mutex // guards what follows
	starts    []report.Start
	listeners map[chan []byte]bool
}

func newWeb(d *Daemon) *web {
	return &web{d: d, store: profilestore.New(filepath.Join(d.cfg.Root, profilestore.FileName), profilestore.Options{Keep: maxStarts, Log: d.log}), listeners: map[chan []byte]bool{}}
}

// serve answers until the daemon ends. An address that cannot be had is tried again.
func (w *web) serve() {
	d := w.d
	w.load()
	srv := &http.Server{Handler: w.handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return d.ctx }}
	defer context.AfterFunc(d.ctx, func() { srv.Close() })()
	const again = time.Second
	for said := false; d.ctx.Err() == nil; {
		l, err := net.Listen("tcp", d.cfg.Web)
		if err == nil {
			d.log.Info("starts are shown", "address", l.Addr().String())
			err = srv.Serve(l)
		}
		if d.ctx.Err() != nil {
			return
		}
		if !said {
			d.log.Error("starts cannot be shown; tried again", "address", d.cfg.Web, "err", err)
			said = true
		}
		select {
		case <-time.After(again):
		case <-d.ctx.Done():
		}
	}
}

// load reads the starts that daemons here had before.
func (w *web) load() {
	heads, err := w.store.List(w.d.ctx)
	if err != nil {
		w.d.log.Error("read records of starts", "err", err)
		return
	}
	heads = slices.DeleteFunc(heads, func(h profilestore.Head) bool { return !h.Automatic() })
	slices.SortFunc(heads, func(a, b profilestore.Head) int { return a.Begun.Compare(b.Begun) })
	for _, h := range heads[max(0, len(heads)-maxStarts):] {
		r, err := w.store.Get(w.d.ctx, h.ID)
		if err != nil {
			continue // it went meanwhile, or is damaged, which List has logged
		}
		if s, ok := report.StartOf(r); ok {
			w.put(s)
		}
	}
}

// put shows a start as it is now, to all who listen.
func (w *web) put(s report.Start) {
	b, err := json.Marshal(s)
	if err != nil {
		w.d.log.Error("encode start", "image", s.Image, "err", err)
		return
	}
	message := slices.Concat([]byte("event: start\ndata: "), b, []byte("\n\n"))
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.IndexFunc(w.starts, func(other report.Start) bool { return other.ID == s.ID }); i >= 0 {
		w.starts[i] = s
	} else {
		w.starts = append(w.starts, s)
		w.starts = slices.Delete(w.starts, 0, max(0, len(w.starts)-maxStarts))
	}
	for l := range w.listeners {
		select {
		case l <- message:
		default:
			delete(w.listeners, l)
			close(l)
		}
	}
}

func (w *web) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", w.serveStarts)
	mux.HandleFunc("GET /events", w.serveEvents)
	mux.HandleFunc("GET /starts/{id}", w.serveRecord)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		if !w.called(r.Host) {
			http.Error(rw, "this is not called by that name: see web-hosts in the configuration", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(rw, r)
	})
}

// called reports whether a request may call the daemon by this name: not by one that
// somebody else's name server leads here (DNS rebinding), whose pages could read
// everything.
func (w *web) called(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if ip := net.ParseIP(name); ip != nil && ip.IsLoopback() || name == "localhost" {
		return true
	}
	return slices.ContainsFunc(w.d.cfg.WebHosts, func(h string) bool { return strings.EqualFold(h, name) })
}

func (w *web) serveStarts(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	starts := slices.Clone(w.starts)
	w.mu.Unlock()
	node, err := os.Hostname()
	if err != nil {
		node = "this node"
	}
	writePage(rw)
	if err := report.WriteLive(rw, node, w.d.cfg.Version, starts); err != nil {
		w.d.log.Debug("show starts", "err", err)
	}
}

// writePage bounds how long a page may take to be written.
func writePage(rw http.ResponseWriter) {
	http.NewResponseController(rw).SetWriteDeadline(time.Now().Add(30 * time.Second))
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	rw.Header().Set("Content-Security-Policy", "frame-ancestors 'none'") // the page has the rest
}

func (w *web) serveRecord(rw http.ResponseWriter, r *http.Request) {
	rec, err := w.store.Get(r.Context(), r.PathValue("id"))
	if errors.Is(err, profilestore.ErrNotFound) || err == nil && rec.Source != profile.SourceDaemon {
		http.Error(rw, "there is no such start, or it is gone", http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(rw, "the record cannot be read: see the daemon's log", http.StatusInternalServerError)
		w.d.log.Error("read record", "record", r.PathValue("id"), "err", err)
		return
	}
	writePage(rw)
	if err := report.Write(rw, []profile.Record{*rec}, report.Options{Tool: w.d.cfg.Version, Home: "/"}); err != nil {
		w.d.log.Debug("show start", "err", err)
	}
}

// serveEvents sends each start that changes, as long as the page listens. What has
// changed before the page connected it has asked for by then, or gets at once.
func (w *web) serveEvents(rw http.ResponseWriter, r *http.Request) {
	l := make(chan []byte, maxBehind)
	w.mu.Lock()
	if len(w.listeners) >= maxListeners {
		w.mu.Unlock()
		http.Error(rw, "too many pages listen", http.StatusServiceUnavailable)
		return
	}
	w.listeners[l] = true
	var now []byte // those under way, and the last ones, which the page may have missed
	for _, s := range w.starts[max(0, len(w.starts)-maxBehind):] {
		if b, err := json.Marshal(s); err == nil {
			now = append(append(append(now, "event: start\ndata: "...), b...), "\n\n"...)
		}
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.listeners, l)
	}()
	rw.Header().Set("Content-Type", "text/event-stream")
	c := http.NewResponseController(rw)
	c.SetReadDeadline(time.Time{})
	send := func(b []byte) bool {
		c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, err := rw.Write(b)
		return err == nil && c.Flush() == nil
	}
	if !send(append([]byte("retry: 1000\n\n"), now...)) {
		return
	}
	alive := time.NewTicker(20 * time.Second)
	defer alive.Stop()
	for {
		select {
		case b, ok := <-l:
			if !ok || !send(b) {
				return
			}
		case <-alive.C:
			if !send([]byte(": still here\n\n")) {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}
