package registry

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/thaw-project/thaw/internal/oci"
)

const (
	// mirrorDown is how long a mirror that failed is left out.
	mirrorDown = 30 * time.Second
	// dockerHubHost serves the API of docker.io.
	dockerHubHost = "registry-1.docker.io"
)

// endpoint is one base URL at which a registry's repositories are found: the
// origin or a mirror.
type endpoint struct {
	host   string // URL host
	prefix string // path up to the repository name, "/v2" or longer
	ns     string // for a mirror: the registry it stands in for
	// credentialHost is the name that credentials are stored under.
	credentialHost string
	plainAllowed   bool
	auth           *auth

	plain     atomic.Bool             // speak plain http
	answered  atomic.Bool             // something there has spoken HTTP to us
	failures  atomic.Int32            // mirrors: in a row
	downUntil atomic.Int64            // mirrors: Unix nanoseconds
	gaveUp    atomic.Pointer[givenUp] // origins: nil once an operation has succeeded
}

// givenUp is when an operation was given up, and why.
type givenUp struct {
	at  time.Time
	err error
}

// newEndpoints lists a registry's mirrors in order, then its origin.
func (c *Client) newEndpoints(registry string) ([]*endpoint, error) {
	var eps []*endpoint
	for _, s := range c.opts.Mirrors[registry] {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.User != nil {
			return nil, fmt.Errorf("open mirror %q of %s: want https://HOST[:PORT][/PATH]", printable(s, 100), registry)
		}
		ep := &endpoint{host: u.Host, prefix: mirrorPrefix(u.Path), ns: registry, credentialHost: u.Host}
		ep.plainAllowed = u.Scheme == "http" && c.mayPlain(u.Host)
		if u.Scheme == "http" && !ep.plainAllowed {
			return nil, fmt.Errorf("open mirror %s of %s: plain http is used for loopback hosts and those configured as insecure", u.Host, registry)
		}
		ep.plain.Store(ep.plainAllowed)
		eps = append(eps, ep)
	}
	origin := &endpoint{host: registry, prefix: "/v2", credentialHost: registry}
	if registry == oci.DockerHub {
		origin.host, origin.credentialHost = dockerHubHost, "index.docker.io"
	}
	origin.plainAllowed = c.mayPlain(registry)
	origin.plain.Store(origin.plainAllowed && !strings.HasSuffix(registry, ":443"))
	eps = append(eps, origin)
	for _, ep := range eps {
		ep.auth = newAuth(c, ep)
	}
	return eps, nil
}

func mirrorPrefix(path string) string {
	path = strings.TrimRight(path, "/")
	if path == "/v2" || strings.HasPrefix(path, "/v2/") {
		return path
	}
	return path + "/v2"
}

// mayPlain reports whether plain http may be spoken to a URL's host.
func (c *Client) mayPlain(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if isLoopback(name) {
		return true
	}
	return slices.ContainsFunc(c.opts.Insecure, func(s string) bool {
		return strings.EqualFold(s, host) || strings.EqualFold(s, name)
	})
}

func isLoopback(name string) bool {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.IsLoopback()
}

// isMirror reports whether another endpoint is asked when this one fails.
func (ep *endpoint) isMirror() bool { return ep.ns != "" }

// scheme is http only where that is allowed and TLS was not seen.
func (ep *endpoint) scheme() string {
	if ep.plain.Load() {
		return "http"
	}
	return "https"
}

// url builds the URL of something in a repository; rest is like "blobs/sha256:...".
func (ep *endpoint) url(repository, rest string) *url.URL {
	u := &url.URL{Scheme: ep.scheme(), Host: ep.host, Path: ep.prefix + "/" + repository + "/" + rest}
	if ep.isMirror() {
		u.RawQuery = url.Values{"ns": {ep.ns}}.Encode()
	}
	return u
}

// owns reports whether u is this registry itself, which may see credentials.
func (ep *endpoint) owns(u *url.URL) bool {
	return u.Host == ep.host && u.Scheme == ep.scheme()
}

// switchScheme changes to the scheme that a server said it speaks. It goes to
// plain http only where that is allowed.
func (ep *endpoint) switchScheme(plain bool) bool {
	if plain && !ep.plainAllowed {
		return false
	}
	ep.plain.Store(plain) // parallel requests may all have found out
	return true
}

// gone returns why an operation was given up, if one was within the last d and
// none has succeeded since.
func (ep *endpoint) gone(d time.Duration) (error, bool) {
	g := ep.gaveUp.Load()
	if g == nil || time.Since(g.at) >= d {
		return nil, false
	}
	return g.err, true
}

func (ep *endpoint) down() bool { return time.Now().UnixNano() < ep.downUntil.Load() }

// fail notes a failure of a mirror and reports whether it is left out for a
// while from now on. One broken connection is not yet a reason.
func (ep *endpoint) fail(e *Error) bool {
	if !ep.isMirror() {
		return false
	}
	broke := e.Status == 0 && !errors.Is(e, errStalled)
	if n := ep.failures.Add(1); broke && n < 2 {
		return false
	}
	ep.leaveOut()
	return true
}

// leaveOut passes a mirror over for a while.
func (ep *endpoint) leaveOut() {
	if ep.isMirror() {
		ep.failures.Store(0)
		ep.downUntil.Store(time.Now().Add(mirrorDown).UnixNano())
	}
}
