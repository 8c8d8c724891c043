package registry

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/thaw-project/thaw/internal/oci"
)

// Options configure a [Client]. The zero value reads public registries, and
// private ones with the user's docker credentials.
type Options struct {
	// Keychain finds credentials; nil means Docker's config.json (and Podman's
	// auth.json) with its credential helpers. One that is also Candidates may have
	// several for a repository: they are tried in order.
	Keychain authn.Keychain
	// DockerConfigDir is the directory of config.json to use with a nil
	// Keychain; empty means the user's.
	DockerConfigDir string
	// Insecure lists hosts ("host" for every port, or "host:port") that may
	// be spoken to in plain http. Loopback always may.
	Insecure []string
	// Mirrors maps a registry ("docker.io", "host:port") to base URLs that
	// are asked before it, in order. A URL without a path is a host like any
	// registry; /v2/PREFIX puts PREFIX before every repository name; any other
	// path goes before /v2.
	Mirrors map[string][]string
	// Transport replaces the connection pools; nil means own ones.
	Transport http.RoundTripper
	UserAgent string
	Log       *slog.Logger // nil discards
	// RequestsPerHost bounds the requests in flight to one host; 0 is 32.
	RequestsPerHost int
	// IdleTimeout cuts a request that has sent nothing for so long; 0 is 10 s.
	IdleTimeout time.Duration
	// GiveUp ends an operation that has made no progress for so long; 0 is 20 s.
	GiveUp time.Duration
}

// Stats are totals over a client's life. All are safe to read at any time.
type Stats struct {
	Requests  atomic.Int64
	BytesRead atomic.Int64                   // body bytes as they came over the wire
	Answers   [len(AnswerNames)]atomic.Int64 // requests by their answers, as AnswerNames has them
}

// AnswerNames are the kinds of answers that are told apart: those that say
// something of credentials, of what is there, and of limits have their own. none
// is a request without an answer.
var AnswerNames = [...]string{"2xx", "3xx", "401", "403", "404", "429", "4xx", "5xx", "none"}

// answered counts an answer; a status of 0 is none.
func (s *Stats) answered(status int) {
	name := strconv.Itoa(status)
	i := slices.Index(AnswerNames[:], name)
	if i < 0 && len(name) == 3 {
		i = slices.Index(AnswerNames[:], name[:1]+"xx")
	}
	if i < 0 {
		i = len(AnswerNames) - 1
	}
	s.Answers[i].Add(1)
}

// Counter counts what the operations under one context cost; see [WithCounter].
type Counter struct {
	Requests  atomic.Int64
	BytesRead atomic.Int64
}

// Client is what all access to registries in a process shares. It is safe for
// concurrent use. Close it when done.
type Client struct {
	opts  Options
	log   *slog.Logger
	stats Stats

	authed http.RoundTripper // the whole chain
	plain  http.RoundTripper // the chain without auth
	lanes  *lanes            // nil with Options.Transport
	limits hostLimits

	life   context.Context // ends at Close; parent of work that outlives its caller's context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu        sync.Mutex // guards the rest
	closed    bool
	endpoints map[string][]*endpoint
	remotes   map[string]*remote
}

// New makes a client. It does no I/O. Invalid mirror URLs are reported when
// their registry is first used.
func New(opts Options) *Client {
	if opts.UserAgent == "" {
		opts.UserAgent = "thaw"
	}
	if opts.RequestsPerHost <= 0 {
		opts.RequestsPerHost = 32
	}
	if opts.IdleTimeout <= 0 {
		opts.IdleTimeout = 10 * time.Second
	}
	if opts.GiveUp <= 0 {
		opts.GiveUp = 20 * time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Keychain == nil {
		opts.Keychain = DockerKeychain(opts.DockerConfigDir)
	}
	opts.Mirrors, opts.Insecure = maps.Clone(opts.Mirrors), slices.Clone(opts.Insecure)
	c := &Client{
		opts:      opts,
		log:       opts.Log,
		endpoints: make(map[string][]*endpoint),
		remotes:   make(map[string]*remote),
		limits:    hostLimits{max: opts.RequestsPerHost, giveUp: opts.GiveUp, hosts: make(map[string]*hostLimit)},
	}
	c.life, c.cancel = context.WithCancel(context.Background())
	base := opts.Transport
	if base == nil {
		c.lanes = newLanes()
		base = c.lanes
	}
	logged := &logTransport{next: base, client: c}
	stalled := &stallTransport{next: logged, idle: opts.IdleTimeout}
	c.plain = &limitTransport{next: stalled, limits: &c.limits}
	c.authed = &authTransport{next: c.plain, keys: opts.Keychain}
	return c
}

// Close ends token requests under way and closes idle connections. Operations
// that still run are not ended: cancel their context.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	if c.lanes != nil {
		c.lanes.CloseIdleConnections()
	} else if t, ok := c.opts.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// begin registers work that Close waits for; false after Close.
func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Add(1)
	}
	return !c.closed
}

// Stats are the client's totals.
func (c *Client) Stats() *Stats { return &c.stats }

// Repository gives access to the repository ref is in, remote or an OCI layout.
// It does no I/O. Calls for the same name share what is learned about it.
func (c *Client) Repository(ref oci.Reference) (Repository, error) {
	if ref.IsLayout() {
		return &layout{dir: ref.LayoutDir}, nil
	}
	if ref.Registry == "" || ref.Repository == "" {
		return nil, fmt.Errorf("open repository: %q names none", ref.String())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.remotes[ref.Name()]; ok {
		return r, nil
	}
	eps, ok := c.endpoints[ref.Registry]
	if !ok {
		var err error
		if eps, err = c.newEndpoints(ref.Registry); err != nil {
			return nil, err
		}
		c.endpoints[ref.Registry] = eps
	}
	r := newRemote(c, ref, eps)
	c.remotes[ref.Name()] = r
	return r, nil
}

type counterKey struct{}

// WithCounter returns a context whose operations also count in n. Counters
// nest: an outer one keeps counting.
func WithCounter(ctx context.Context, n *Counter) context.Context {
	outer := counters(ctx)
	return context.WithValue(ctx, counterKey{}, append(outer[:len(outer):len(outer)], n))
}

func counters(ctx context.Context) []*Counter {
	list, _ := ctx.Value(counterKey{}).([]*Counter)
	return list
}

type patienceKey struct{}

// patience overrides how long an operation goes on by itself.
type patience struct{ giveUp, maxPause time.Duration }

// WithPatience returns a context for callers who try again by themselves, and
// know better than this package for how long: its operations give up when nothing
// came for giveUp and the attempt under way has ended, keep to a server's
// Retry-After for no longer than maxPause, and are not failed because others were.
func WithPatience(ctx context.Context, giveUp, maxPause time.Duration) context.Context {
	return context.WithValue(ctx, patienceKey{}, patience{giveUp, maxPause})
}

func patienceOf(ctx context.Context) (patience, bool) {
	p, ok := ctx.Value(patienceKey{}).(patience)
	return p, ok
}

type originKey struct{}

// FromOrigin returns a context whose reads skip the mirrors and forget cached
// redirects: for asking again when bytes were not those they should be.
func FromOrigin(ctx context.Context) context.Context {
	return context.WithValue(ctx, originKey{}, true)
}

// OriginOnly reports whether a context is of FromOrigin.
func OriginOnly(ctx context.Context) bool {
	only, _ := ctx.Value(originKey{}).(bool)
	return only
}
