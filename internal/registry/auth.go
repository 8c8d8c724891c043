package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/sync/singleflight"
)

// authTimeout bounds one token exchange, credential helper included.
const authTimeout = 20 * time.Second

// credential is what goes into the Authorization header for one repository and
// scope. An empty header means: ask without.
type credential struct {
	header string
	got    time.Time
	// refresh is when a new one is fetched ahead, expires when this one is not
	// used any more; zero for never.
	refresh, expires time.Time
	refreshing       atomic.Bool // one try ahead of time is enough
	worked           atomic.Bool
	from             authn.AuthConfig // what it was made of
}

// auth holds the credentials for one endpoint. What kind it wants is learned
// from its first 401; from then on every request carries them from the start.
// Each is fetched once, however many requests wait for it.
type auth struct {
	client   *Client
	endpoint *endpoint
	flight   singleflight.Group
	worked   sync.Map // repository name -> nil: a credential has been accepted for it

	mu        sync.Mutex // guards the rest
	challenge challenge  // scheme "" until a 401 came
	scopes    map[string][]string
	creds     map[string]*credential
	refused   map[string][]authn.AuthConfig // candidates that were, since all were
}

func newAuth(c *Client, ep *endpoint) *auth {
	return &auth{client: c, endpoint: ep, scopes: make(map[string][]string), creds: make(map[string]*credential),
		refused: make(map[string][]authn.AuthConfig)}
}

func authKey(info *requestInfo) string { return info.repository + " " + info.scope }

// current is the credential to send now; nil while nothing is known to be wanted.
func (a *auth) current(ctx context.Context, info *requestInfo) (*credential, error) {
	key := authKey(info)
	a.mu.Lock()
	wanted, cred := a.challenge.scheme != "", a.creds[key]
	a.mu.Unlock()
	if !wanted {
		return nil, nil
	}
	if cred == nil {
		return a.fetch(ctx, info)
	}
	now := time.Now()
	if !cred.expires.IsZero() && !now.Before(cred.expires) {
		return a.fetch(ctx, info)
	}
	if !cred.refresh.IsZero() && !now.Before(cred.refresh) && cred.refreshing.CompareAndSwap(false, true) {
		a.start(ctx, info) // ahead of time: nobody waits for it
	}
	return cred, nil
}

// renew replaces a credential that was refused (nil: none was sent). It returns
// nil if the challenges want something unknown.
func (a *auth) renew(ctx context.Context, info *requestInfo, old *credential, challenges []challenge) (*credential, error) {
	ch, ok := pickChallenge(challenges)
	key := authKey(info)
	a.mu.Lock()
	if cred := a.creds[key]; cred != nil && cred != old {
		a.mu.Unlock()
		return cred, nil // someone else was quicker
	}
	if !ok && a.challenge.scheme == "" {
		a.mu.Unlock()
		return nil, nil
	}
	if ok {
		a.challenge = ch
		// The registry's own idea of the scope: a mirror may keep the
		// repository under another name.
		if want := ch.params["scope"]; want != "" && len(want) < 1024 && !slices.Contains(a.scopes[key], want) {
			a.scopes[key] = []string{want}
		}
	}
	delete(a.creds, key)
	if old != nil && !old.worked.Load() {
		a.refuse(key, old.from)
	}
	a.mu.Unlock()
	return a.fetch(ctx, info)
}

// maxRefused bounds what is remembered of candidates.
const maxRefused = 16

// refuse notes that a candidate is no good. Called with mu held.
func (a *auth) refuse(key string, cfg authn.AuthConfig) {
	if !slices.Contains(a.refused[key], cfg) && len(a.refused[key]) < maxRefused {
		a.refused[key] = append(a.refused[key], cfg)
	}
}

// pickChallenge prefers a bearer challenge with a realm to basic.
func pickChallenge(list []challenge) (challenge, bool) {
	for _, c := range list {
		if c.scheme == "bearer" && c.params["realm"] != "" {
			return c, true
		}
	}
	for _, c := range list {
		if c.scheme == "basic" {
			return c, true
		}
	}
	return challenge{}, false
}

// start fetches a credential unless that is under way already. The work
// outlives the caller's context: others may wait for the same.
func (a *auth) start(ctx context.Context, info *requestInfo) <-chan singleflight.Result {
	key := authKey(info)
	return a.flight.DoChan(key, func() (any, error) {
		if !a.client.begin() {
			return nil, &Error{Op: "find credentials", Registry: a.endpoint.host, Err: errClosed}
		}
		defer a.client.work.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), authTimeout)
		defer cancel()
		defer context.AfterFunc(a.client.life, cancel)()
		cred, err := a.obtain(ctx, info)
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		a.creds[key] = cred
		a.mu.Unlock()
		return cred, nil
	})
}

func (a *auth) fetch(ctx context.Context, info *requestInfo) (*credential, error) {
	select {
	case res := <-a.start(ctx, info):
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*credential), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Candidates is what a keychain may be besides: one that knows several credentials
// for a repository, the likeliest first. Those that are not reached are not asked
// for. An error is of one source, others follow; none at all is no error.
type Candidates interface {
	Candidates(ctx context.Context, target authn.Resource) iter.Seq2[authn.AuthConfig, error]
}

func candidates(ctx context.Context, keys authn.Keychain, target resource) iter.Seq2[authn.AuthConfig, error] {
	if several, ok := keys.(Candidates); ok {
		return several.Candidates(ctx, target)
	}
	return func(yield func(authn.AuthConfig, error) bool) {
		authenticator, err := authn.Resolve(ctx, keys, target)
		if err != nil {
			yield(authn.AuthConfig{}, err)
			return
		}
		cfg, err := authn.Authorization(ctx, authenticator)
		if err != nil {
			cfg = &authn.AuthConfig{}
		}
		yield(*cfg, err)
	}
}

// obtain asks the keychain and, for bearer, the token server. Of several candidates
// it takes the first that was not refused, or of those that were the first: passwords
// change.
func (a *auth) obtain(ctx context.Context, info *requestInfo) (*credential, error) {
	key := authKey(info)
	target := resource{a.endpoint.credentialHost, info.repository}
	a.mu.Lock()
	old := slices.Clone(a.refused[key])
	a.mu.Unlock()
	var bad []authn.AuthConfig
	var errs []error
	var last error
	found := false
	for cfg, err := range candidates(ctx, a.client.opts.Keychain, target) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = true
		if slices.Contains(old, cfg) {
			bad = append(bad, cfg)
			continue
		}
		var cred *credential
		if cred, last = a.try(ctx, info, cfg); !errors.Is(last, ErrUnauthorized) {
			return cred, last
		}
	}
	if !found && len(errs) > 0 {
		return nil, &Error{Op: "find credentials", Registry: target.registry, Repository: info.repository, Err: errors.Join(errs...)}
	}
	if !found {
		bad = []authn.AuthConfig{{}}
	}
	a.mu.Lock()
	delete(a.refused, key)
	a.mu.Unlock()
	for _, cfg := range bad {
		var cred *credential
		if cred, last = a.try(ctx, info, cfg); !errors.Is(last, ErrUnauthorized) {
			return cred, last
		}
	}
	return nil, last
}

// try makes a credential of one candidate.
func (a *auth) try(ctx context.Context, info *requestInfo, cfg authn.AuthConfig) (*credential, error) {
	cred, err := a.build(ctx, info, &cfg)
	if err == nil {
		cred.from = cfg
		return cred, nil
	}
	if errors.Is(err, ErrUnauthorized) {
		a.mu.Lock()
		a.refuse(authKey(info), cfg)
		a.mu.Unlock()
	}
	return nil, err
}

// build makes a credential of what a keychain has.
func (a *auth) build(ctx context.Context, info *requestInfo, cfg *authn.AuthConfig) (*credential, error) {
	a.mu.Lock()
	ch, scopes := a.challenge, a.scopes[authKey(info)]
	a.mu.Unlock()
	if cfg.RegistryToken != "" {
		return &credential{header: "Bearer " + cfg.RegistryToken, got: time.Now()}, nil
	}
	if ch.scheme == "basic" {
		return &credential{header: basicHeader(cfg), got: time.Now()}, nil
	}
	own := "repository:" + info.repository + ":" + info.scope
	if !slices.Contains(scopes, own) {
		scopes = append(slices.Clone(scopes), own)
	}
	return a.fetchToken(ctx, ch, cfg, scopes)
}

func basicHeader(cfg *authn.AuthConfig) string {
	switch {
	case cfg.Auth != "":
		return "Basic " + cfg.Auth
	case cfg.Username != "" || cfg.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
	}
	return ""
}

// authTransport adds the endpoint's credential to requests for the endpoint's
// own host, and to no others: a redirect's target never sees it. A 401 is
// answered with a new credential, and with each other one that there is.
type authTransport struct {
	next http.RoundTripper
	keys authn.Keychain
}

func (t *authTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	info := infoFrom(ctx)
	if info == nil || !info.endpoint.owns(req.URL) {
		return t.next.RoundTrip(req)
	}
	a := info.endpoint.auth
	cred, err := a.current(ctx, info)
	if err != nil {
		closeRequest(req)
		return nil, err
	}
	resp, err := t.send(req, info, cred)
	_, several := t.keys.(Candidates)
	var tried []authn.AuthConfig
	for i := 0; i < maxAttempts && err == nil && refused(resp, cred); i++ {
		if i > 0 && !several || req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
			break
		}
		if err := detachBody(resp); err != nil { // the token request may need this slot
			return nil, err
		}
		next, nerr := a.renew(ctx, info, cred, parseChallenges(resp.Header.Values("WWW-Authenticate")))
		if nerr != nil {
			return nil, nerr
		}
		if next == nil || cred != nil && next.header == cred.header || cred == nil && next.header == "" || slices.Contains(tried, next.from) {
			break
		}
		again := req.Clone(ctx)
		if req.GetBody != nil {
			if again.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		cred, tried = next, append(tried, next.from)
		resp, err = t.send(again, info, cred)
	}
	return resp, err
}

// maxAttempts bounds the credentials that one request is tried with.
const maxAttempts = 4

func (t *authTransport) send(req *http.Request, info *requestInfo, cred *credential) (*http.Response, error) {
	if cred == nil || cred.header == "" {
		return t.next.RoundTrip(req)
	}
	out := req.Clone(req.Context())
	out.Header.Set("Authorization", cred.header)
	resp, err := t.next.RoundTrip(out)
	if err == nil && resp.StatusCode < 400 && cred.worked.CompareAndSwap(false, true) {
		info.endpoint.auth.worked.Store(info.repository, nil)
	}
	return resp, err
}

// refused: a 401, or a 403 for a credential that used to work (ECR answers an
// expired one so).
func refused(resp *http.Response, cred *credential) bool {
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return true
	case http.StatusForbidden:
		return cred != nil && cred.worked.Load() && time.Since(cred.got) > time.Minute
	}
	return false
}

// detachBody reads a short body into memory and gives its connection back.
func detachBody(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	resp.Body.Close()
	if err != nil {
		return fmt.Errorf("read answer %d: %w", resp.StatusCode, err)
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	return nil
}

// hasWorked reports whether a credential has ever been accepted for the
// repository: a refusal after that may be a passing fault.
func (a *auth) hasWorked(repository string) bool {
	_, ok := a.worked.Load(repository)
	return ok
}
