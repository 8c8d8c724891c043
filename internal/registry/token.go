package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	maxTokenBytes = 1 << 20
	// defaultTokenLife is the specification's for answers without expires_in.
	defaultTokenLife = 60 * time.Second
	maxTokenLife     = 24 * time.Hour
)

// fetchToken trades the user's credentials for a bearer token
// (https://distribution.github.io/distribution/spec/auth/token/, and .../oauth/
// for identity tokens and for servers that know only that).
func (a *auth) fetchToken(ctx context.Context, ch challenge, cfg *authn.AuthConfig, scopes []string) (*credential, error) {
	realm, err := a.checkRealm(ch.params["realm"])
	if err != nil {
		return nil, &Error{Op: "fetch token", Registry: a.endpoint.host, Err: err}
	}
	var cred *credential
	if cfg.IdentityToken != "" {
		cred, err = a.postToken(ctx, realm, ch.params["service"], scopes, url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {cfg.IdentityToken},
		})
	} else {
		cred, err = a.getToken(ctx, realm, ch.params["service"], scopes, basicHeader(cfg))
		var e *Error
		if errors.As(err, &e) && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed) && cfg.Username != "" {
			cred, err = a.postToken(ctx, realm, ch.params["service"], scopes, url.Values{
				"grant_type": {"password"}, "username": {cfg.Username}, "password": {cfg.Password},
			})
		}
	}
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			e.Op, e.Registry, e.Reference = "fetch token", a.endpoint.host, strings.Join(scopes, " ")
		}
		return nil, err
	}
	return cred, nil
}

// checkRealm decides where passwords may be sent: https, or plain http where
// that is allowed. An address of a private network is only believed from a
// registry that is itself on one: a public registry must not make a node call
// its cloud's metadata service.
func (a *auth) checkRealm(realm string) (*url.URL, error) {
	u, err := url.Parse(realm)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("the registry names an invalid token server %q", printable(realm, 100))
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !a.client.mayPlain(u.Host)) {
		return nil, fmt.Errorf("the registry names the token server %s://%s; plain http is used for loopback hosts and those configured as insecure", u.Scheme, u.Host)
	}
	if u.Host != a.endpoint.host && isPrivate(u.Hostname()) && !isPrivate(hostname(a.endpoint.host)) {
		return nil, fmt.Errorf("the registry names a token server with a private address, %s", u.Host)
	}
	return u, nil
}

func hostname(host string) string {
	u := url.URL{Host: host}
	return u.Hostname()
}

func isPrivate(name string) bool {
	if isLoopback(name) {
		return true
	}
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return false
	}
	ip = ip.Unmap()
	return ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()
}

func (a *auth) getToken(ctx context.Context, realm *url.URL, service string, scopes []string, basic string) (*credential, error) {
	u := *realm
	q := u.Query()
	if service != "" {
		q.Set("service", service)
	}
	q["scope"] = scopes
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if basic != "" {
		req.Header.Set("Authorization", basic)
	}
	return a.doToken(req)
}

func (a *auth) postToken(ctx context.Context, realm *url.URL, service string, scopes []string, form url.Values) (*credential, error) {
	form.Set("client_id", a.client.opts.UserAgent)
	form.Set("scope", strings.Join(scopes, " "))
	if service != "" {
		form.Set("service", service)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return a.doToken(req)
}

func (a *auth) doToken(req *http.Request) (*credential, error) {
	a.client.setHeaders(req)
	resp, err := a.client.plain.RoundTrip(req)
	if err != nil {
		return nil, transportError(req.Context(), req.URL, err, true)
	}
	if resp.StatusCode != http.StatusOK {
		e := answerError(resp, time.Now())
		if e.Status == http.StatusUnauthorized && req.Header.Get("Authorization") != "" {
			e.Err = errors.New("the token server refused the user name or password")
		}
		return nil, e
	}
	defer resp.Body.Close()
	fail := func(err error) (*credential, error) {
		return nil, &Error{URL: cleanURL(req.URL), Status: resp.StatusCode, Retryable: true, Err: err}
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenBytes+1))
	if err != nil {
		return fail(err)
	}
	if len(b) > maxTokenBytes {
		return fail(fmt.Errorf("the answer is longer than %d bytes", maxTokenBytes))
	}
	cred, err := parseToken(b, time.Now())
	if err != nil {
		return fail(err)
	}
	return cred, nil
}

// parseToken decodes a token answer that arrived at now.
func parseToken(b []byte, now time.Time) (*credential, error) {
	var doc struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"` // whole seconds, but not everywhere
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("decode token answer: %w", err)
	}
	token := doc.Token
	if token == "" {
		token = doc.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("decode token answer: it has no usable token")
	}
	life := defaultTokenLife
	if doc.ExpiresIn > 0 {
		life = maxTokenLife
		if doc.ExpiresIn < maxTokenLife.Seconds() {
			life = time.Duration(doc.ExpiresIn * float64(time.Second))
		}
	}
	return &credential{
		header:  "Bearer " + token,
		got:     now,
		refresh: now.Add(life - min(life/4, 30*time.Second)),
		expires: now.Add(life - min(life/10, 5*time.Second)),
	}, nil
}

// setHeaders sets what every request carries. Asking for identity keeps any
// proxy from compressing: ranges are of the stored bytes.
func (c *Client) setHeaders(req *http.Request) {
	req.Header.Set("User-Agent", c.opts.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
}
