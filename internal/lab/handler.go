package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Kinds of requests, as in Stats.
const (
	kindPing      = "ping"
	kindManifest  = "manifest"
	kindBlob      = "blob"
	kindRedirect  = "redirect"
	kindReferrers = "referrers"
	kindTags      = "tags"
	kindToken     = "token"
	kindUpload    = "upload"
	kindOther     = "other"
)

// request is what a request asks for.
type request struct {
	path       string
	kind       string
	repository string
	digest     string // of a blob
	blob       bool   // asks for a blob's bytes
	signed     bool   // at the host that redirects lead to
}

// classify tells requests of the distribution API apart.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#endpoints
func classify(r *http.Request) request {
	req := request{path: r.URL.Path, kind: kindOther}
	elems := strings.Split(strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/v2/"), "/"), "/")
	n := len(elems)
	switch {
	case r.URL.Path == "/token":
		req.kind = kindToken
	case r.URL.Path == "/v2/" || r.URL.Path == "/v2":
		req.kind = kindPing
	case n >= 3 && elems[n-2] == "manifests":
		req.kind = kindManifest
	case n >= 3 && elems[n-2] == "referrers":
		req.kind = kindReferrers
	case n >= 3 && elems[n-2] == "tags":
		req.kind = kindTags
	case n >= 3 && elems[n-2] == "blobs" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		req.kind = kindBlob
		req.digest = elems[n-1]
		req.blob = r.Method == http.MethodGet
	case n >= 3 && (elems[n-2] == "blobs" || elems[n-3] == "blobs"):
		req.kind = kindUpload
	}
	if n >= 3 {
		req.repository = strings.Join(elems[:n-2], "/")
		if req.kind == kindUpload && elems[n-2] == "uploads" {
			req.repository = strings.Join(elems[:n-3], "/")
		}
	}
	return req
}

// serveMain answers at the registry's address.
func (s *Server) serveMain(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/stats", "/stats/reset", "/faults", "/warm":
		s.serveAdmin(w, r)
		return
	}
	s.serveRequest(w, r, classify(r))
}

func (s *Server) serveRequest(w http.ResponseWriter, r *http.Request, req request) {
	arrived := time.Now()
	faults := s.pick(req)
	var extra time.Duration
	if delay := faults.get(Delay); delay != nil {
		s.stats.fault(Delay)
		extra = delay.wait
	}
	if c := connOf(r); c != nil {
		c.request(arrived, extra)
	}
	if faults.has(Redirect) {
		req.kind, req.digest = kindRedirect, ""
	}
	digest := req.digest
	if !req.blob {
		digest = ""
		req.digest = ""
	}
	s.stats.add(req.kind, digest, 1, 0)
	bw := newBodyWriter(w, s, r, req, faults)
	if a := faults.get(Reset); a != nil && a.sizeBytes < 0 {
		s.stats.fault(Reset)
		bw.abort()
	}
	if token := faults.get(Token); token != nil && !s.authorized(bw, r, req, token) {
		return
	}
	if a := faults.get(WebPage); a != nil {
		bw.injected(a)
		bw.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(bw, strings.Repeat("<!DOCTYPE html><title>Welcome</title>", 1000)) // the client is gone: nobody to tell
		return
	}
	for _, kind := range []string{TooMany, ServerError, NotFound, Unauthorized} {
		if a := faults.get(kind); a != nil {
			s.refuse(bw, a)
			return
		}
	}
	s.answer(bw, r, req, faults)
}

func (s *Server) answer(w *bodyWriter, r *http.Request, req request, faults *picked) {
	switch req.kind {
	case kindRedirect:
		s.redirect(w, r, req, faults.get(Redirect))
	case kindBlob:
		s.serveBlob(w, r, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], faults)
	case kindToken:
		s.serveToken(w, r)
	case kindReferrers:
		s.serveReferrers(w, r, req)
	case kindManifest:
		if r.Method == http.MethodPut {
			s.putManifest(w, r, req)
			return
		}
		s.library.ServeHTTP(w, r)
	case kindUpload:
		seen := &statusWriter{ResponseWriter: w}
		s.library.ServeHTTP(seen, r)
		if seen.status == http.StatusCreated {
			s.notifier.blobPushed(r, req)
		}
	default:
		s.library.ServeHTTP(w, r)
	}
}

// refuse answers with an error's status.
func (s *Server) refuse(w *bodyWriter, a *activeFault) {
	w.injected(a)
	code := "UNAVAILABLE"
	switch a.Kind {
	case TooMany:
		code = "TOOMANYREQUESTS"
		if a.wait > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int((a.wait+time.Second-1)/time.Second)))
		}
	case NotFound:
		code = "NOT_FOUND"
	case Unauthorized:
		code = "UNAUTHORIZED"
	default:
		if a.status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
	}
	writeError(w, a.status, code, "injected by the lab")
}

// writeError answers with the API's error body.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes
func writeError(w http.ResponseWriter, status int, code, message string) {
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	writeJSON(w, status, "application/json", map[string][]entry{"errors": {{code, message}}})
}

func writeJSON(w http.ResponseWriter, status int, mediaType string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client is gone: nobody to tell
}

// serveAdmin answers what is not of the registry: counts, faults, warming up.
func (s *Server) serveAdmin(w http.ResponseWriter, r *http.Request) {
	type call struct{ method, path string }
	switch (call{r.Method, r.URL.Path}) {
	case call{http.MethodGet, "/stats"}:
		writeJSON(w, http.StatusOK, "application/json", s.Stats())
	case call{http.MethodPost, "/stats/reset"}:
		s.ResetStats()
		w.WriteHeader(http.StatusNoContent)
	case call{http.MethodGet, "/faults"}:
		writeJSON(w, http.StatusOK, "application/json", s.Faults())
	case call{http.MethodPost, "/faults"}:
		var faults []Fault
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&faults)
		if err == nil {
			err = s.SetFaults(faults)
		}
		if err != nil {
			http.Error(w, fmt.Sprintf("set faults: %v", err), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case call{http.MethodPost, "/warm"}:
		if err := s.Warm(r.Context()); err != nil {
			http.Error(w, fmt.Sprintf("warm: %v", err), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "no such call", http.StatusMethodNotAllowed)
	}
}
