package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

const (
	maxRedirects   = 5
	maxBlobStates  = 8192
	noRangesMemory = time.Minute
	// minAttempt is the least time the last attempt gets.
	minAttempt = 2 * time.Second
)

// remote is a repository behind HTTP. What it learns is kept as long as its client.
type remote struct {
	client   *Client
	registry string
	name     string
	eps      []*endpoint // mirrors in order, then the origin
	// noRanges[i] is when eps[i] last answered a range with the whole blob, in
	// Unix nanoseconds.
	noRanges  []atomic.Int64
	referrers atomic.Bool // the origin has the referrers API

	mu    sync.Mutex // guards blobs
	blobs map[digest.Digest]*blobState
}

// blobState is what was learned about a blob at each endpoint.
type blobState struct {
	targets map[*endpoint]*url.URL // where its redirect led
	missing map[*endpoint]bool     // mirrors that do not have it
}

func newRemote(c *Client, ref oci.Reference, eps []*endpoint) *remote {
	return &remote{
		client: c, registry: ref.Registry, name: ref.Repository, eps: eps,
		noRanges: make([]atomic.Int64, len(eps)),
		blobs:    make(map[digest.Digest]*blobState),
	}
}

func (r *remote) origin() *endpoint { return r.eps[len(r.eps)-1] }

// NoRanges implements the method that the function [NoRanges] looks for.
func (r *remote) NoRanges() bool { return r.lacksRanges(len(r.eps) - 1) }

func (r *remote) lacksRanges(i int) bool {
	seen := r.noRanges[i].Load()
	return seen != 0 && time.Since(time.Unix(0, seen)) < noRangesMemory
}

// operation is one thing wanted from a repository, over all its attempts.
type operation struct {
	what   Error // Op, Reference, Offset, Length
	budget *budget
	eps    []*endpoint
	scope  string
	skip   func(*endpoint) bool // mirrors to leave out; may be nil
}

func (r *remote) operation(ctx context.Context, op, reference string) *operation {
	eps := r.eps
	if OriginOnly(ctx) {
		eps = eps[len(eps)-1:]
	}
	giveUp := r.client.opts.GiveUp
	p, own := patienceOf(ctx)
	if own {
		giveUp = p.giveUp
	} else if _, ok := r.origin().gone(goneMemory); ok {
		giveUp = min(giveUp, goneGiveUp)
	}
	return &operation{
		what:   Error{Op: op, Reference: reference, Registry: r.registry, Repository: r.name},
		budget: newBudget(giveUp, own), eps: eps, scope: "pull",
	}
}

// pause waits before the next attempt of an operation, or says why there is
// none.
func (r *remote) pause(ctx context.Context, op *operation, failed *Error) error {
	err := op.budget.pause(ctx, failed, r.origin().answered.Load())
	if op.budget.spent && !op.budget.own && !errors.Is(failed, errBusy) {
		r.origin().gaveUp.Store(&givenUp{time.Now(), failed.Err})
	}
	return err
}

// describe completes an error of one attempt with what was wanted.
func (op *operation) describe(ctx context.Context, err error) *Error {
	e := transportError(ctx, nil, err, true)
	if e.Op == "" {
		e.Op, e.Reference, e.Offset, e.Length = op.what.Op, op.what.Reference, op.what.Offset, op.what.Length
		e.Registry, e.Repository = op.what.Registry, op.what.Repository
	}
	return e
}

// try runs f against the endpoints in order until one succeeds, and again after
// a pause while the budget lasts. Mirrors are passed over on any error.
func (r *remote) try(ctx context.Context, op *operation, f func(context.Context, *endpoint) error) error {
	for {
		var failed *Error
		for i, ep := range op.eps {
			origin := i == len(op.eps)-1
			if !origin && (ep.down() || (op.skip != nil && op.skip(ep))) {
				continue
			}
			err := f(r.attemptContext(ctx, op, ep, origin), ep)
			if err == nil {
				ep.failures.Store(0)
				r.origin().gaveUp.Store(nil)
				return nil
			}
			failed = op.describe(ctx, err)
			if ctx.Err() != nil {
				failed.Retryable = false
				return failed
			}
			if !origin {
				r.passOver(ctx, ep, failed)
			}
		}
		if failed.Status == http.StatusUnauthorized && r.origin().auth.hasWorked(r.name) {
			failed.Retryable = true
		}
		if err := r.pause(ctx, op, failed); err != nil {
			return err
		}
	}
}

// attemptContext says how patient an attempt is: less with a mirror, which has
// a stand-in, and no longer than the budget lasts.
func (r *remote) attemptContext(ctx context.Context, op *operation, ep *endpoint, origin bool) context.Context {
	idle := r.client.opts.IdleTimeout
	if !op.budget.own {
		idle = min(idle, max(minAttempt, op.budget.remaining()))
	}
	if !origin {
		idle = max(idle/2, minAttempt)
	}
	return withInfo(ctx, &requestInfo{endpoint: ep, repository: r.name, scope: op.scope, idle: idle})
}

func (r *remote) passOver(ctx context.Context, ep *endpoint, err *Error) {
	r.client.log.DebugContext(ctx, "mirror passed over", "mirror", ep.host, "err", err)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoRanges) {
		return
	}
	if ep.fail(err) {
		r.client.log.WarnContext(ctx, "mirror left out for a while", "mirror", ep.host, "registry", r.registry, "for", mirrorDown, "err", err)
	}
}

// request asks the endpoint itself for something in the repository. It follows
// no redirects.
func (r *remote) request(ctx context.Context, ep *endpoint, method, rest string, setup func(*http.Request)) (*http.Response, error) {
	for range 2 {
		resp, err := r.send(ctx, method, ep.url(r.name, rest), setup)
		switch {
		case err != nil && errors.Is(err, http.ErrSchemeMismatch) && ep.switchScheme(true):
			continue
		case err == nil && resp.StatusCode == http.StatusBadRequest && resp.Request.URL.Scheme == "http":
			if derr := detachBody(resp); derr != nil {
				return nil, transportError(ctx, resp.Request.URL, derr, true)
			}
			if saysTLS(resp) && ep.switchScheme(false) {
				continue
			}
		}
		if err == nil {
			ep.answered.Store(true)
		}
		return resp, err
	}
	return nil, &Error{URL: cleanURL(ep.url(r.name, rest)), Err: http.ErrSchemeMismatch}
}

// saysTLS recognises what Go's and nginx's servers answer to plain http on a
// port for https.
func saysTLS(resp *http.Response) bool {
	b, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(string(b)))
	return strings.Contains(string(b), "HTTP request") && strings.Contains(string(b), "HTTPS")
}

// send does one HTTP exchange with any URL.
func (r *remote) send(ctx context.Context, method string, u *url.URL, setup func(*http.Request)) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, &Error{URL: cleanURL(u), Err: err}
	}
	r.client.setHeaders(req)
	if setup != nil {
		setup(req)
	}
	resp, err := r.client.authed.RoundTrip(req)
	if err != nil {
		known := true
		if info := infoFrom(ctx); info != nil && info.endpoint.owns(u) {
			known = info.endpoint.answered.Load()
		}
		return nil, transportError(ctx, u, err, known)
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" && resp.StatusCode < 300 {
		resp.Body.Close()
		return nil, &Error{URL: cleanURL(u), Status: resp.StatusCode, Retryable: true, Err: fmt.Errorf("the answer has Content-Encoding %s, which was not asked for", printable(enc, 20))}
	}
	return resp, nil
}

// get is a GET that follows redirects. target is where the last one led, nil
// if there was none.
func (r *remote) get(ctx context.Context, ep *endpoint, rest string, setup func(*http.Request)) (resp *http.Response, target *url.URL, err error) {
	resp, err = r.request(ctx, ep, http.MethodGet, rest, setup)
	for hops := 0; err == nil && isRedirect(resp); hops++ {
		target, err = r.redirectTarget(resp)
		resp.Body.Close()
		if err == nil && hops == maxRedirects {
			err = fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if err != nil {
			return nil, nil, &Error{URL: cleanURL(resp.Request.URL), Status: resp.StatusCode, Err: err}
		}
		resp, err = r.send(ctx, http.MethodGet, target, setup)
	}
	return resp, target, err
}

func isRedirect(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirectTarget resolves Location and holds it to the rule for plain http.
func (r *remote) redirectTarget(resp *http.Response) (*url.URL, error) {
	u, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" || u.Host == "" {
		return nil, errors.New("a redirect without a usable location")
	}
	u.User, u.Fragment = nil, ""
	if u.Scheme != "https" && (u.Scheme != "http" || !r.client.mayPlain(u.Host)) {
		return nil, fmt.Errorf("a redirect to %s://%s; plain http is used for loopback hosts and those configured as insecure", u.Scheme, u.Host)
	}
	return u, nil
}

// readBody reads at most limit bytes of an answer and closes it.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	u := cleanURL(resp.Request.URL)
	if resp.ContentLength > limit {
		return nil, &Error{URL: u, Status: resp.StatusCode, Err: fmt.Errorf("it has %d bytes, more than %d", resp.ContentLength, limit)}
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, &Error{URL: u, Status: resp.StatusCode, Retryable: true, Err: err}
	}
	if int64(len(b)) > limit {
		return nil, &Error{URL: u, Status: resp.StatusCode, Err: fmt.Errorf("it has more than %d bytes", limit)}
	}
	return b, nil
}

// Manifest implements [Repository].
func (r *remote) Manifest(ctx context.Context, tagOrDigest string) ([]byte, v1.Descriptor, error) {
	op := r.operation(ctx, "fetch manifest", tagOrDigest)
	if err := checkName(tagOrDigest); err != nil {
		return nil, v1.Descriptor{}, op.describe(ctx, &Error{Err: err})
	}
	var b []byte
	var desc v1.Descriptor
	err := r.try(ctx, op, func(ctx context.Context, ep *endpoint) (err error) {
		b, desc, err = r.manifest(ctx, ep, tagOrDigest)
		return err
	})
	return b, desc, err
}

// checkName keeps what is not a tag or digest out of URLs.
func checkName(tagOrDigest string) error {
	if oci.ValidTag(tagOrDigest) || digest.Digest(tagOrDigest).Validate() == nil {
		return nil
	}
	return errors.New("not a tag or digest")
}

func acceptManifests(req *http.Request) {
	req.Header.Set("Accept", strings.Join(oci.ManifestMediaTypes(), ", "))
}

func (r *remote) manifest(ctx context.Context, ep *endpoint, tagOrDigest string) ([]byte, v1.Descriptor, error) {
	resp, _, err := r.get(ctx, ep, "manifests/"+tagOrDigest, acceptManifests)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, v1.Descriptor{}, answerError(resp, time.Now())
	}
	b, err := readBody(resp, oci.MaxManifestBytes)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	fail := func(retryable bool, err error) ([]byte, v1.Descriptor, error) {
		return nil, v1.Descriptor{}, &Error{URL: cleanURL(resp.Request.URL), Status: resp.StatusCode, Retryable: retryable, Err: err}
	}
	// By digest the bytes must be those; by tag the registry's own claim is
	// all there is to check against.
	want := digest.Digest(tagOrDigest)
	if want.Validate() != nil {
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want.Validate() == nil {
		if err := verify(want, b); err != nil {
			return fail(true, err)
		}
	} else {
		want = digest.FromBytes(b)
	}
	mediaType, err := oci.ManifestMediaType(b, resp.Header.Get("Content-Type"))
	if err != nil {
		return fail(false, err)
	}
	return b, v1.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(b))}, nil
}
