package install

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiServer takes events as Kubernetes' does: what its validation asks of new ones and
// of changes, as far as we could break it.
type apiServer struct {
	t *testing.T

	mu     sync.Mutex // guards what follows
	events map[string]map[string]any
	posts  int
	down   bool
	more   chan struct{} // told of each request
}

var (
	objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
	camelCase  = regexp.MustCompile(`^[A-Z][A-Za-z]{1,127}$`)
)

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		select {
		case s.more <- struct{}{}:
		default:
		}
	}()
	if s.down {
		http.Error(w, "out of order", http.StatusServiceUnavailable)
		return
	}
	if r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var o map[string]any
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	const path = "/apis/events.k8s.io/v1/namespaces/default/events"
	switch {
	case r.Method == http.MethodPost && r.URL.Path == path && r.Header.Get("Content-Type") == "application/json":
		s.posts++
		name := s.check(o)
		if s.events[name] != nil {
			http.Error(w, `{"reason":"AlreadyExists"}`, http.StatusConflict)
			return
		}
		s.events[name] = o
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPatch && strings.HasPrefix(r.URL.Path, path+"/") && r.Header.Get("Content-Type") == "application/merge-patch+json":
		e := s.events[strings.TrimPrefix(r.URL.Path, path+"/")]
		again, _ := o["series"].(map[string]any)
		if e == nil || len(o) != 1 || again["count"].(float64) < 2 || !isMicroTime(again["lastObservedTime"]) {
			s.t.Errorf("patched with %v", o)
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		e["series"] = again
	default:
		s.t.Errorf("asked for %s %s", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
	}
}

func isMicroTime(v any) bool {
	text, _ := v.(string)
	at, err := time.Parse(time.RFC3339Nano, text)
	return err == nil && !at.IsZero() && strings.Contains(text, ".")
}

// check is the validation of a new event; it returns its name.
func (s *apiServer) check(o map[string]any) string {
	text := func(m map[string]any, key string, most int) string {
		v, _ := m[key].(string)
		if v == "" || len(v) > most {
			s.t.Errorf("%s is %q", key, v)
		}
		return v
	}
	meta, _ := o["metadata"].(map[string]any)
	regarding, _ := o["regarding"].(map[string]any)
	name := text(meta, "name", 253)
	if !objectName.MatchString(name) || text(o, "apiVersion", 99) != "events.k8s.io/v1" || text(o, "kind", 99) != "Event" || text(meta, "namespace", 63) != "default" ||
		!isMicroTime(o["eventTime"]) || text(o, "type", 9) != "Warning" || !camelCase.MatchString(text(o, "reason", 128)) || !camelCase.MatchString(text(o, "action", 128)) ||
		regarding["namespace"] != nil || text(regarding, "kind", 99) != "Node" || text(regarding, "name", 253) != text(regarding, "uid", 253) || text(regarding, "apiVersion", 9) != "v1" {
		s.t.Errorf("not an event: %v", o)
	}
	text(o, "note", 1024)
	text(o, "reportingController", 128)
	text(o, "reportingInstance", 128)
	return name
}

// all returns the events that there are.
func (s *apiServer) all() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []map[string]any
	for _, e := range s.events {
		all = append(all, e)
	}
	return all
}

func newAPIServer(t *testing.T) (*apiServer, *Cluster) {
	t.Helper()
	s := &apiServer{t: t, events: map[string]map[string]any{}, more: make(chan struct{}, 1)}
	srv := httptest.NewTLSServer(s)
	t.Cleanup(srv.Close)
	account := t.TempDir()
	write(t, filepath.Join(account, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	write(t, filepath.Join(account, "token"), "secret\n")
	c, err := newCluster(srv.URL, account)
	if err != nil {
		t.Fatal(err)
	}
	c.Node = "ip-10-0-0-1.example"
	return s, c
}

// TestTell: an event is made once, and counted when it happens again.
func TestTell(t *testing.T) {
	s, c := newAPIServer(t)
	now := time.Now()
	h := Happening{Reason: "ImageNotLazy", Action: "BringWhole", Note: strings.Repeat("ä", maxNote), Key: "nginx no-index", First: now, Last: now, Count: 1}
	for count := range 4 {
		h.Count = count + 1
		if err := c.Tell(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	all := s.all()
	if len(all) != 1 || all[0]["series"].(map[string]any)["count"].(float64) != 4 {
		t.Errorf("events %v", all)
	}
	h.Key = "another"
	h.Count = 1
	if err := c.Tell(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := c.Tell(t.Context(), h); err != nil { // told by the pod before this one
		t.Fatal(err)
	}
	if n := len(s.all()); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
	c.Node = strings.Repeat("n.", 126) + "n" // as long as names may be
	if err := c.Tell(t.Context(), h); err != nil {
		t.Error(err)
	}
	s.down = true
	if err := c.Tell(t.Context(), h); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("error %v", err)
	}
}

// TestTellAll: what is new is told once, also when the cluster, or the daemon, was away.
func TestTellAll(t *testing.T) {
	s, c := newAPIServer(t)
	old := Happening{Reason: "ImageNotLazy", Action: "BringWhole", Note: "before", Key: "old", First: time.Now().Add(-time.Hour), Last: time.Now().Add(-time.Hour), Count: 1}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	looks, all := 0, []Happening{old}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.TellAll(ctx, time.Millisecond, func(context.Context) ([]Happening, error) {
			mu.Lock()
			defer mu.Unlock()
			if looks++; looks%3 == 0 {
				return nil, errors.New("no daemon is running")
			}
			return all, nil
		}, slog.New(slog.DiscardHandler))
	}()
	s.mu.Lock()
	s.down = true
	s.mu.Unlock()
	now := time.Now().Add(time.Minute) // after TellAll was called, whenever that is
	mu.Lock()
	all = append(all, Happening{Reason: "ImageNotLazy", Action: "BringWhole", Note: "new", Key: "new", First: now, Last: now, Count: 1})
	mu.Unlock()
	<-s.more // refused
	s.mu.Lock()
	s.down = false
	s.mu.Unlock()
	for len(s.all()) == 0 {
		<-s.more
	}
	mu.Lock()
	before := looks
	all[1].Last, all[1].Count = now.Add(time.Second), 2 // again, but too soon
	mu.Unlock()
	for after := before; after < before+10; runtime.Gosched() {
		mu.Lock()
		after = looks
		mu.Unlock()
	}
	cancel()
	<-done
	if got := s.all(); len(got) != 1 || got[0]["note"] != "new" || s.posts != 1 {
		t.Errorf("%d posts, events %v", s.posts, got)
	}
}
