// Package lab is a container registry that behaves like one far away.
//
// It serves the images of an OCI layout through the distribution API, with the
// network of a cloud: a time to first byte, a speed for each connection and one
// for all of them together, and on request the faults real registries have.
// Measurements against it can be repeated, and every fault a client must
// survive can be had at will.
//
// A [Server] is an HTTP server with two listeners (the registry, and the host
// its redirects lead to) whose connections are shaped alike. A request is
// classified, matched against the faults, held for the time to first byte and
// then answered: blobs by this package (any range, straight from the file),
// everything else by the registry library. Pushes are accepted and lost at
// exit; the layout is never written. Whoever wants to hear of them is told in the
// way of distribution's registry.
//
// It deliberately does not speak TLS, does not shape what clients send, does
// not model packet loss or slow start, and keeps pushed uploads in memory until
// they are finished: it is a laboratory, not a registry to keep things in.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Options says what a [Server] serves and how badly.
type Options struct {
	// Dir is the OCI layout to serve. Empty: nothing, push something first.
	Dir string
	// Listen is the TCP address, port 0 for any free one. Default 127.0.0.1:0.
	Listen string
	// Network is the shape of every connection. The zero value shapes nothing.
	Network Network
	// Faults are those active from the start.
	Faults []Fault
	// Notify are told of every manifest and blob that is pushed, as distribution
	// tells its endpoints.
	Notify []Endpoint
}

// Server is a running lab registry.
type Server struct {
	network  Network
	store    *blobStore
	library  http.Handler
	images   []Image
	listener net.Listener
	signed   net.Listener
	servers  []*http.Server
	serving  sync.WaitGroup
	secret   []byte
	stats    *recorder
	notifier *notifier

	faultsMu sync.RWMutex // guards faults
	faults   []*activeFault

	mu      sync.Mutex // guards running, closed
	idle    *sync.Cond // running fell to zero
	running int
	closed  bool
	done    chan struct{} // closed with the server; ends stalls
}

// New loads the layout, listens and serves until [Server.Close].
func New(opts Options) (*Server, error) {
	if opts.Listen == "" {
		opts.Listen = "127.0.0.1:0"
	}
	store, err := newBlobStore(opts.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{
		network: opts.Network,
		store:   store,
		secret:  newSecret(),
		stats:   newRecorder(),
		done:    make(chan struct{}),
	}
	s.idle = sync.NewCond(&s.mu)
	s.notifier = newNotifier(opts.Notify)
	s.library = registry.New(
		registry.WithBlobHandler(store),
		registry.WithReferrersSupport(true),
		registry.Logger(log.New(io.Discard, "", 0)),
	)
	if err := s.start(opts); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) start(opts Options) error {
	if err := s.SetFaults(opts.Faults); err != nil {
		return err
	}
	if opts.Dir != "" {
		images, err := loadLayout(opts.Dir, s.library)
		if err != nil {
			return fmt.Errorf("load layout %s: %w", opts.Dir, err)
		}
		s.images = images
	}
	line := newLink(opts.Network.Rate)
	var err error
	if s.listener, err = net.Listen("tcp", opts.Listen); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		return err
	}
	if s.signed, err = net.Listen("tcp", net.JoinHostPort(host, "0")); err != nil {
		return err
	}
	s.serve(s.listener, line, s.serveMain)
	s.serve(s.signed, line, s.serveSigned)
	return nil
}

func (s *Server) serve(l net.Listener, line *link, handler http.HandlerFunc) {
	server := &http.Server{
		Handler:  s.tracked(handler),
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	s.servers = append(s.servers, server)
	shaped := &shapedListener{Listener: l, network: s.network, line: line, accepted: &s.stats.connections}
	s.serving.Go(func() { _ = server.Serve(shaped) }) // always ErrServerClosed: Close ends it
}

type connKey struct{}

// connOf returns the shaped connection a request came by.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// tracked lets Close wait for handlers, which http.Server.Close does not.
func (s *Server) tracked(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		s.running++
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			s.running--
			s.idle.Broadcast()
			s.mu.Unlock()
		}()
		next(w, r)
	}
}

// Addr returns the registry's real address, host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Images returns what the layout held, in its order.
func (s *Server) Images() []Image { return s.images }

// Stats returns the counts since the start or the last [Server.ResetStats].
func (s *Server) Stats() Stats { return s.stats.snapshot() }

// ResetStats starts counting anew.
func (s *Server) ResetStats() { s.stats.reset() }

// Warm reads every blob once, so that a page cache dropped for the client's sake
// does not make the registry slow as well.
func (s *Server) Warm(ctx context.Context) error { return s.store.warm(ctx) }

// Shutdown stops accepting, lets running answers finish until ctx ends, then closes.
func (s *Server) Shutdown(ctx context.Context) error {
	for _, server := range s.servers {
		_ = server.Shutdown(ctx) // what did not finish in time is cut by Close
	}
	return s.Close()
}

// Close cuts all connections, waits for the handlers and drops what was pushed.
// It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	for _, l := range []net.Listener{s.listener, s.signed} {
		if l != nil {
			_ = l.Close()
		}
	}
	for _, server := range s.servers {
		_ = server.Close()
	}
	s.serving.Wait()
	s.mu.Lock()
	for s.running > 0 {
		s.idle.Wait()
	}
	s.mu.Unlock()
	s.notifier.close()
	return os.RemoveAll(s.store.pushed)
}
