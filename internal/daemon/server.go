package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/layerstore"
	"github.com/thaw-project/thaw/internal/registry"
)

type peerKey struct{}

// withPeer notes which process is at the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return ctx
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ctx = context.WithValue(ctx, peerKey{}, cred)
		}
	})
	return ctx
}

// maxRequestBytes bounds a call's body.
const maxRequestBytes = 1 << 20

func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", d.serveStatus)
	mux.HandleFunc("POST /v1/stop", d.serveStop)
	mux.HandleFunc("POST /v1/upgrade", d.serveUpgrade)
	mux.HandleFunc("POST /v1/mounts", d.serveMount)
	mux.HandleFunc("GET /v1/mounts/{id}", d.serveInspect)
	mux.HandleFunc("POST /v1/mounts/{id}/times", d.serveTimes)
	mux.HandleFunc("GET /v1/mounts/{id}/waits", d.serveWaits)
	mux.HandleFunc("DELETE /v1/mounts", d.serveUnmount)
	mux.HandleFunc("POST /v1/pull", d.servePull)
	mux.HandleFunc("GET /v1/fallbacks", d.serveFallbacks)
	mux.HandleFunc("GET /v1/why", d.serveWhy)
	mux.HandleFunc("GET /v1/layers", d.serveLayers)
	mux.HandleFunc("DELETE /v1/layers", d.serveRemove)
	mux.HandleFunc("POST /v1/gc", d.serveGC)
	mux.HandleFunc("DELETE /v1/pins", d.serveUnpin)
	mux.HandleFunc("GET /v1/traces", d.serveTraces)
	mux.HandleFunc("GET /v1/trace", d.serveTrace)
	mux.HandleFunc("GET /v1/trace/file", d.serveTraceFile)
	mux.HandleFunc("DELETE /v1/traces", d.serveRemoveTrace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cred, ok := r.Context().Value(peerKey{}).(*unix.Ucred)
		if !ok || cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
			writeError(w, api.Errorf(api.CodeInvalid, "", "only root and the daemon's user may call it"))
			return
		}
		if !d.enter() {
			writeError(w, errLeaving)
			return
		}
		defer d.exit()
		// What is under way when the daemon stops is given up as if its client was gone.
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(d.ctx, cancel)()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, maxRequestBytes)
		mux.ServeHTTP(w, r)
	})
}

func writeError(w http.ResponseWriter, err error) {
	w.WriteHeader(http.StatusConflict)
	json.NewEncoder(w).Encode(userError(err))
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		writeError(w, err)
		return
	}
	json.NewEncoder(w).Encode(v)
}

// userError says an error as a user is to see it.
func userError(err error) *api.Error {
	var e *api.Error
	if errors.As(err, &e) {
		if e.Message == err.Error() {
			return e
		}
		return &api.Error{Message: err.Error(), Hint: e.Hint, Code: e.Code}
	}
	e = &api.Error{Message: err.Error()}
	switch {
	case errors.Is(err, registry.ErrUnauthorized):
		e.Hint = "log in with a tool that writes docker's config.json (docker login, crane auth login), or set DOCKER_CONFIG"
	case errors.Is(err, registry.ErrNotFound):
		e.Code = api.CodeNotFound
	case errors.Is(err, http.ErrSchemeMismatch):
		e.Hint = "plain http needs --plain-http, or the host under insecure in the configuration"
	case errors.Is(err, layerstore.ErrConflict):
		e.Hint = "one of two images lies about the layer they share: end what uses it (thaw daemon status) or thaw cache rm it, then try again"
	case errors.Is(err, layerstore.ErrQuarantined):
		e.Hint = "its index lied: --index=ignore makes another, once nothing uses the layer any more"
	case errors.Is(err, unix.ENOSPC):
		e.Hint = "make room: thaw cache gc, thaw cache rm IMAGE, or what else is on that disk"
	}
	return e
}

// stream runs a long call: work's events go out as they come, then its result.
func stream(w http.ResponseWriter, r *http.Request, in any, work func(ctx context.Context, event func(api.Event)) (any, error)) {
	if err := json.NewDecoder(r.Body).Decode(in); err != nil {
		writeError(w, api.Errorf(api.CodeInvalid, "", "decode request: %v", err))
		return
	}
	var mu sync.Mutex // guards w
	enc := json.NewEncoder(w)
	send := func(e api.Event) {
		mu.Lock()
		defer mu.Unlock()
		enc.Encode(e)
		http.NewResponseController(w).Flush()
	}
	result, err := work(r.Context(), send)
	if err != nil {
		send(api.Event{Error: userError(err)})
		return
	}
	b, err := json.Marshal(result)
	if err != nil {
		send(api.Event{Error: userError(fmt.Errorf("encode result: %w", err))})
		return
	}
	send(api.Event{Result: b})
}

func (d *Daemon) serveMount(w http.ResponseWriter, r *http.Request) {
	var req api.MountRequest
	stream(w, r, &req, func(ctx context.Context, event func(api.Event)) (any, error) {
		defer d.start()()
		t := &task{req: req.ImageRequest, event: event}
		defer d.end(t)
		begun := time.Now()
		id, failed := d.web.begun(req.Image, begun)
		t.shown = id
		pid := int(r.Context().Value(peerKey{}).(*unix.Ucred).Pid)
		if pid == 0 && req.Dir == "" {
			return nil, api.Errorf(api.CodeUnsupported, "run thaw where the daemon runs", "the caller is in another PID namespace: its end could not be seen")
		}
		m, err := d.mount(ctx, t, req, pid)
		if err != nil {
			if ctx.Err() == nil {
				d.counts.fail(failMount)
				d.startFailed(req, t, begun, err)
				d.countFailure(req, err)
			}
			failed(err)
			return nil, err
		}
		if ctx.Err() != nil { // nobody is there to be told of it
			return nil, errors.Join(ctx.Err(), d.unmount(context.WithoutCancel(ctx), m))
		}
		m.counter.Requests.Add(t.counter.Requests.Load())
		m.counter.BytesRead.Add(t.counter.BytesRead.Load())
		m.pulled.Store(t.pulledBytes)
		return d.describe(m, true), nil
	})
}

// end lets go of what a task still holds.
func (d *Daemon) end(t *task) {
	d.dropFiles(t)
	if err := t.release(); err != nil {
		d.log.Error("release layers", "image", t.req.Image, "err", err)
	}
}

func (d *Daemon) serveInspect(w http.ResponseWriter, r *http.Request) {
	m := d.find(r.PathValue("id"))
	if m == nil {
		writeError(w, api.Errorf(api.CodeNotFound, "", "there is no mount %q", r.PathValue("id")))
		return
	}
	switch r.URL.Query().Get("wait") {
	case "complete":
		m.wait(r.Context(), nil)
	case "hurry":
		for _, l := range m.layers {
			l.hydrate.Hurry()
		}
		m.wait(r.Context(), m.stuck)
	}
	answer(w, d.describe(m, false), nil)
}

func (d *Daemon) serveTimes(w http.ResponseWriter, r *http.Request) {
	m := d.find(r.PathValue("id"))
	if m == nil {
		writeError(w, api.Errorf(api.CodeNotFound, "", "there is no mount %q", r.PathValue("id")))
		return
	}
	var t api.Times
	if err := json.NewDecoder(r.Body).Decode(&t); err != nil {
		writeError(w, api.Errorf(api.CodeInvalid, "", "decode request: %v", err))
		return
	}
	d.told(m, t)
	if t.Ready > 0 {
		d.sched.Resume()
	}
	answer(w, struct{}{}, nil)
}

// wait returns when a mount is complete, cannot be, or is gone, and when giveUp
// returns an error.
func (m *mounted) wait(ctx context.Context, giveUp func() error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for giveUp == nil || giveUp() == nil {
		select {
		case <-m.completed:
			return
		case <-m.gone:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stuck returns why the background makes no progress of late, or nil.
func (m *mounted) stuck() error {
	for _, l := range m.layers {
		if err := l.hydrate.Err(); err != nil {
			return err
		}
	}
	return nil
}

// outage is the longest lasting outage of a mount's layers, else the last one
// that is over.
func (m *mounted) outage() *api.Outage {
	var found *hydrate.Outage
	for _, l := range m.layers {
		o := l.hydrate.Outage()
		switch {
		case o == nil || o.Until.Before(m.Created) && !o.Until.IsZero():
		case found == nil,
			o.Until.IsZero() && (!found.Until.IsZero() || o.Since.Before(found.Since)),
			!found.Until.IsZero() && o.Until.After(found.Until):
			found = o
		}
	}
	if found == nil {
		return nil
	}
	return &api.Outage{Since: found.Since, Until: found.Until, Error: found.Err.Error()}
}

func (d *Daemon) serveUnmount(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	m := d.find(name)
	if m == nil {
		writeError(w, api.Errorf(api.CodeNotFound, "thaw daemon status lists them", "there is no mount %q", name))
		return
	}
	if m.Snapshot {
		writeError(w, api.Errorf(api.CodeInUse, "remove the containers and the image from containerd", "the mount %q is containerd's", name))
		return
	}
	answer(w, struct{}{}, d.unmount(context.WithoutCancel(r.Context()), m))
}

func (d *Daemon) serveStop(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	var left []*mounted
	for _, m := range d.mounts {
		left = append(left, m)
	}
	d.mu.Unlock()
	if len(left) > 0 && r.URL.Query().Get("force") != "true" {
		writeError(w, api.Errorf(api.CodeInUse, "end the containers and thaw umount the directories first, or use --force",
			"%d mounts need the daemon", len(left)))
		return
	}
	var errs []error
	for _, m := range left {
		errs = append(errs, d.unmount(context.WithoutCancel(r.Context()), m))
	}
	answer(w, struct{}{}, errors.Join(errs...))
	d.cancel()
}

func (d *Daemon) serveStatus(w http.ResponseWriter, r *http.Request) {
	s := api.Status{Pid: os.Getpid(), Version: d.cfg.Version, Root: d.cfg.Root, Started: d.started, Mode: d.mode,
		ModeReason: d.modeReason, NotServed: d.notServed, MemoryBytes: residentBytes(os.Getpid()), Mounts: []api.Mount{}}
	if d.keeper != nil {
		about := d.keeper.About()
		s.Keeper = &api.Keeper{Pid: about.Pid, Version: about.Version, MemoryBytes: residentBytes(about.Pid)}
	}
	for _, m := range d.allMounts() {
		s.Mounts = append(s.Mounts, *d.describe(m, false))
	}
	s.Waiting = d.sched.Stats().Waiting
	s.Requests, s.NetworkBytes = d.clients.sums()
	s.Layers, s.Goroutines = len(d.layers.list()), runtime.NumGoroutine()
	var err error
	s.Cache, err = d.describeCache()
	answer(w, s, err)
}

// describe says how a mount is now.
func (d *Daemon) describe(m *mounted, config bool) *api.Mount {
	out := &api.Mount{ID: m.ID, Image: m.img.ref.String(), Manifest: m.Manifest, Dir: m.ImageDir, Mode: m.Mode, Index: m.Origin,
		Pid: m.Pid, Created: m.Created, Recording: m.recorded(), Fallbacks: describeFallbacks(m.Fallbacks), Stats: m.stats()}
	m.mu.Lock()
	out.Phases = m.phases()
	m.mu.Unlock()
	if m.Mode == d.mode {
		out.ModeReason = d.modeReason
	}
	if m.Writable {
		out.Dir, out.Bundle = m.path("rootfs"), m.path("bundle")
	}
	if config {
		out.Config = m.img.oci.ConfigBytes
	}
	return out
}

func (d *Daemon) servePull(w http.ResponseWriter, r *http.Request) {
	var req api.ImageRequest
	stream(w, r, &req, func(ctx context.Context, event func(api.Event)) (any, error) {
		defer d.start()()
		t := &task{req: req, event: event}
		defer d.end(t)
		p, err := d.pull(ctx, t)
		if err != nil && ctx.Err() == nil {
			d.counts.fail(failPull)
		}
		return p, err
	})
}

func (d *Daemon) serveLayers(w http.ResponseWriter, r *http.Request) {
	all, err := d.store.List()
	answer(w, describeLayers(all), err)
}

func describeLayers(infos []layerstore.Info) []api.Layer {
	out := make([]api.Layer, 0, len(infos))
	for _, i := range infos {
		out = append(out, api.Layer{Blob: i.Blob, DiffID: i.DiffID, SizeBytes: i.TarBytes, HereBytes: i.HereBytes,
			DiskBytes: i.DiskBytes,
			Complete:  i.Proven, InUse: i.InUse, Pins: append([]string{}, i.Pins...), Quarantined: i.Quarantined, LastUse: i.LastUse})
	}
	return out
}

func (d *Daemon) serveRemove(w http.ResponseWriter, r *http.Request) {
	removed, err := d.remove(r.Context(), strings.TrimSpace(r.URL.Query().Get("name")))
	answer(w, describeLayers(removed), err)
}

func (d *Daemon) serveUnpin(w http.ResponseWriter, r *http.Request) {
	answer(w, struct{}{}, d.unpin(strings.TrimSpace(r.URL.Query().Get("name"))))
}

func (d *Daemon) serveGC(w http.ResponseWriter, r *http.Request) {
	removed, err := d.gc(r.Context())
	answer(w, describeLayers(removed), err)
}

// completedAt is zero while a mount is not complete.
func (m *mounted) stats() api.Stats {
	s := api.Stats{Requests: m.counter.Requests.Load(), NetworkBytes: m.counter.BytesRead.Load()}
	seen := map[*layer]bool{}
	var waits hydrate.Waits
	for i, l := range m.layers {
		if seen[l] {
			continue
		}
		seen[l] = true
		s.ImageBytes += m.img.oci.Layers[i].Descriptor.Size
		s.UnpackedBytes += l.store.Meta().TarBytes
		s.HereBytes += l.store.HaveBytes()
		s.FetchedBytes += l.hydrate.FetchedBytes()
		s.Waiting += l.hydrate.Waiting()
		waits = waits.Plus(l.hydrate.Waits(), m.before[l])
		s.Requests += l.counter.Requests.Load()
		s.NetworkBytes += l.counter.BytesRead.Load()
	}
	s.Outage = m.outage()
	if b := m.bundle; b != nil {
		s.Bundle, _ = b.status()
		s.BundleBytes = b.counter.BytesRead.Load()
		s.Requests += b.counter.Requests.Load()
		s.NetworkBytes += s.BundleBytes
	}
	s.FetchedBytes += m.pulled.Load() - m.base
	s.Waits, s.WaitP50, s.WaitP99, s.WaitTotal = int(waits.Count()), waits.Quantile(.5), waits.Quantile(.99), waits.Total()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Complete = m.complete
	s.CompletedAt = m.doneAt
	err := m.err
	if err == nil && !m.complete {
		err = m.stuck()
	}
	if err != nil {
		s.Error = err.Error()
		s.CompletedAt = time.Time{}
	}
	return s
}
