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
	// maxConnections and maxPages bound what anybody who reaches the address may take of the
	// daemon: its files, and the memory in which pages are made, until they are read.
	maxConnections = 128
	maxPages       = 4
	pageWait       = 10 * time.Second
)

// web shows this daemon's starts. It is there only if it was asked for.
type web struct {
	d     *Daemon
	store *profilestore.Store
	pages chan struct{} // has those that are being made and sent

	mu        sync.Mutex // guards what follows
	starts    []report.Start
	listeners map[chan []byte]bool
}

func newWeb(d *Daemon) *web {
	return &web{d: d, store: profilestore.New(filepath.Join(d.cfg.Root, profilestore.FileName), profilestore.Options{Keep: maxStarts, Log: d.log}), pages: make(chan struct{}, maxPages), listeners: map[chan []byte]bool{}}
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
			err = srv.Serve(newFewConns(l))
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

// fewConns is a listener that has maxConnections at once; others wait for one to end.
type fewConns struct {
	net.Listener
	taken  chan struct{}
	closed chan struct{}
	close  func()
}

func newFewConns(l net.Listener) *fewConns {
	closed := make(chan struct{})
	return &fewConns{l, make(chan struct{}, maxConnections), closed, sync.OnceFunc(func() { close(closed) })}
}

func (l *fewConns) Accept() (net.Conn, error) {
	select {
	case l.taken <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.taken
		return nil, err
	}
	return &fewConn{c, sync.OnceFunc(func() { <-l.taken })}, nil
}

func (l *fewConns) Close() error {
	l.close()
	return l.Listener.Close()
}

type fewConn struct {
	net.Conn
	leave func()
}

func (c *fewConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// newID is an ID for a start that is begun now: of hundreds in one second, as when a node
// comes up, some would have the same.
func (w *web) newID(begun time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		id := profile.NewID(begun)
		if !slices.ContainsFunc(w.starts, func(s report.Start) bool { return s.ID == id }) {
			return id
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
	mux.HandleFunc("GET /{$}", w.page(w.serveStarts))
	mux.HandleFunc("GET /events", w.serveEvents)
	mux.HandleFunc("GET /starts/{id}", w.page(w.serveRecord))
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

// page makes few pages at a time.
func (w *web) page(serve http.HandlerFunc) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		wait := time.NewTimer(pageWait)
		defer wait.Stop()
		select {
		case w.pages <- struct{}{}:
			defer func() { <-w.pages }()
			http.NewResponseController(rw).SetWriteDeadline(time.Now().Add(writeTimeout))
			serve(rw, r)
		case <-wait.C:
			http.Error(rw, "too many pages are being read", http.StatusServiceUnavailable)
		case <-r.Context().Done():
		}
	}
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
	pageHeader(rw)
	if err := report.WriteLive(rw, node, w.d.cfg.Version, starts); err != nil {
		w.d.log.Debug("show starts", "err", err)
	}
}

// writeTimeout is how long a page may take to be written.
const writeTimeout = 30 * time.Second

func pageHeader(rw http.ResponseWriter) {
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
	pageHeader(rw)
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
