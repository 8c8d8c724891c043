package lab

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

func newSecret() []byte { return []byte(rand.Text()) }

func (s *Server) sign(parts ...string) string {
	mac := hmac.New(sha256.New, s.secret)
	mac.Write([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(mac.Sum(nil))
}

func (s *Server) signedBy(signature string, parts ...string) bool {
	return hmac.Equal([]byte(signature), []byte(s.sign(parts...)))
}

// expired reads a time as Unix microseconds.
func expired(at string) bool {
	n, err := strconv.ParseInt(at, 10, 64)
	return err != nil || !time.Now().Before(time.UnixMicro(n))
}

// wantedScope is the scope a request needs, as repository:NAME:ACTIONS; empty
// for requests of no repository.
func wantedScope(r *http.Request, req request) string {
	if req.repository == "" || req.kind == kindOther {
		return ""
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return "repository:" + req.repository + ":pull"
	}
	return "repository:" + req.repository + ":pull,push"
}

// authorized checks the bearer token, and answers 401 with a challenge without one.
// https://distribution.github.io/distribution/spec/auth/token/
func (s *Server) authorized(w *bodyWriter, r *http.Request, req request, fault *activeFault) bool {
	scope := wantedScope(r, req)
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if ok && s.validToken(token, scope) {
		return true
	}
	w.injected(fault)
	challenge := fmt.Sprintf(`Bearer realm="http://%s/token",service="thaw-lab"`, r.Host)
	if scope != "" {
		challenge += fmt.Sprintf(",scope=%q", scope)
	}
	if ok {
		challenge += `,error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "token missing, expired or of another scope")
	return false
}

// A token is EXPIRY|SCOPES|SIGNATURE in base64.
func (s *Server) validToken(token, wanted string) bool {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return false
	}
	parts := strings.Split(string(b), "|")
	if len(parts) != 3 || !s.signedBy(parts[2], parts[0], parts[1]) || expired(parts[0]) {
		return false
	}
	return wanted == "" || slices.ContainsFunc(strings.Fields(parts[1]), func(has string) bool { return covers(has, wanted) })
}

// covers reports whether one scope allows all that another one asks for.
func covers(has, wanted string) bool {
	i, j := strings.LastIndex(has, ":"), strings.LastIndex(wanted, ":")
	if i < 0 || j < 0 || has[:i] != wanted[:j] {
		return false
	}
	actions := strings.Split(has[i+1:], ",")
	for action := range strings.SplitSeq(wanted[j+1:], ",") {
		if !slices.Contains(actions, action) {
			return false
		}
	}
	return true
}

// serveToken is the realm. Without an active token fault it hands out tokens
// that nobody asks for.
func (s *Server) serveToken(w *bodyWriter, r *http.Request) {
	valid := time.Minute
	if fault := s.tokenFault(); fault != nil {
		user, password, _ := r.BasicAuth()
		if fault.user != "" && (user != fault.user || password != fault.password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="thaw-lab"`)
			writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user or password")
			return
		}
		valid = fault.wait
	}
	if err := r.ParseForm(); err != nil {
		writeError(w, http.StatusBadRequest, "UNSUPPORTED", err.Error())
		return
	}
	expiry := strconv.FormatInt(time.Now().Add(valid).UnixMicro(), 10)
	scopes := strings.Join(r.Form["scope"], " ")
	token := base64.RawURLEncoding.EncodeToString([]byte(expiry + "|" + scopes + "|" + s.sign(expiry, scopes)))
	writeJSON(w, http.StatusOK, "application/json", map[string]any{
		"token":        token,
		"access_token": token,
		"expires_in":   max(1, int(valid/time.Second)),
		"issued_at":    time.Now().UTC().Format(time.RFC3339),
	})
}

func (s *Server) tokenFault() *activeFault {
	s.faultsMu.RLock()
	defer s.faultsMu.RUnlock()
	for _, a := range s.faults {
		if a.Kind == Token {
			return a
		}
	}
	return nil
}

// signedPrefix is the path below which signed URLs lie.
const signedPrefix = "/signed/"

// redirect sends the client to the other host, as registries with an object
// store behind them do.
func (s *Server) redirect(w *bodyWriter, r *http.Request, req request, fault *activeFault) {
	w.injected(fault)
	_, port, err := net.SplitHostPort(s.signed.Addr().String())
	if err != nil {
		writeError(w, http.StatusInternalServerError, "INTERNAL_SERVER_ERROR", err.Error())
		return
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	path := signedPrefix + strings.TrimPrefix(req.path, "/v2/")
	expires := strconv.FormatInt(time.Now().Add(fault.wait).UnixMicro(), 10)
	query := url.Values{"expires": {expires}, "signature": {s.sign(path, expires)}}
	to := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: path, RawQuery: query.Encode()}
	w.Header().Set("Location", to.String())
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// serveSigned answers at the host that redirects lead to. Like an object store
// it refuses credentials it did not ask for, and a URL whose time is over.
func (s *Server) serveSigned(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	expires, signature := query.Get("expires"), query.Get("signature")
	_, dgst, ok := strings.Cut(r.URL.Path, "/blobs/")
	get := r.Method == http.MethodGet
	switch {
	case !ok || !strings.HasPrefix(r.URL.Path, signedPrefix) || !get && r.Method != http.MethodHead:
		http.NotFound(w, r)
	case r.Header.Get("Authorization") != "":
		http.Error(w, "InvalidArgument: only one auth mechanism allowed", http.StatusBadRequest)
	case !s.signedBy(signature, r.URL.Path, expires):
		http.Error(w, "SignatureDoesNotMatch", http.StatusForbidden)
	case expired(expires):
		http.Error(w, "AccessDenied: request has expired", http.StatusForbidden)
	default:
		s.serveRequest(w, r, request{path: r.URL.Path, kind: kindBlob, digest: dgst, blob: get, signed: true})
		return
	}
	s.stats.add(kindOther, "", 1, 0)
}
