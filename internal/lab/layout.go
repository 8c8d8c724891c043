package lab

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image of the layout, as it is served.
type Image struct {
	Name   string        `json:"name"` // REPOSITORY:TAG
	Digest digest.Digest `json:"digest"`
}

// servedName is where a ref name of the layout is found: NAME is NAME:latest, and
// a full reference loses its registry's host.
func servedName(refName string) (repository, tag string) {
	name, _, _ := strings.Cut(refName, "@")
	repository, tag = name, "latest"
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		repository, tag = name[:i], name[i+1:]
	}
	if host, rest, ok := strings.Cut(repository, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		repository = rest
	}
	return repository, tag
}

// loader puts a layout's manifests into the registry library, which keeps them
// in memory; blobs stay where they are.
type loader struct {
	dir     string
	library http.Handler
	index   v1.Index
}

func loadLayout(dir string, library http.Handler) ([]Image, error) {
	l := loader{dir: dir, library: library}
	if _, err := os.Stat(filepath.Join(dir, v1.ImageLayoutFile)); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &l.index); err != nil {
		return nil, fmt.Errorf("decode %s: %w", v1.ImageIndexFile, err)
	}
	var images []Image
	for _, desc := range l.index.Manifests {
		name := desc.Annotations[v1.AnnotationRefName]
		if name == "" {
			continue // found as a referrer or a part of a named one, or not served
		}
		repository, tag := servedName(name)
		if err := l.put(repository, tag, desc); err != nil {
			return nil, fmt.Errorf("load image %s: %w", name, err)
		}
		images = append(images, Image{Name: repository + ":" + tag, Digest: desc.Digest})
	}
	return images, nil
}

// put adds a manifest, after the manifests it consists of and before those that
// refer to it.
func (l *loader) put(repository, target string, desc v1.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(l.dir, v1.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if err != nil {
		return err
	}
	// Verified: also what keeps a layout from naming a manifest as its own part.
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return fmt.Errorf("manifest %s has other bytes than its digest", desc.Digest)
	}
	var parts v1.Index
	if err := json.Unmarshal(b, &parts); err != nil {
		return fmt.Errorf("decode manifest %s: %w", desc.Digest, err)
	}
	for _, part := range parts.Manifests {
		if err := l.put(repository, part.Digest.String(), part); err != nil {
			return err
		}
	}
	if err := l.request(repository, target, cmp.Or(desc.MediaType, parts.MediaType), b); err != nil {
		return err
	}
	for _, other := range l.index.Manifests {
		if other.Annotations[v1.AnnotationRefName] == "" && other.Digest != desc.Digest && l.refersTo(other, desc.Digest) {
			if err := l.put(repository, other.Digest.String(), other); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *loader) refersTo(desc v1.Descriptor, subject digest.Digest) bool {
	if desc.Digest.Validate() != nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join(l.dir, v1.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if err != nil {
		return false
	}
	var m v1.Manifest
	return json.Unmarshal(b, &m) == nil && m.Subject != nil && m.Subject.Digest == subject
}

func (l *loader) request(repository, target, mediaType string, body []byte) error {
	answer := callLibrary(l.library, http.MethodPut, "/v2/"+repository+"/manifests/"+target, mediaType, body)
	if answer.status != http.StatusCreated {
		return fmt.Errorf("put manifest %s/%s: status %d: %s", repository, target, answer.status, bytes.TrimSpace(answer.body.Bytes()))
	}
	return nil
}

// answer is a response of the library kept in memory.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }
func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}
func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func callLibrary(library http.Handler, method, path, mediaType string, body []byte) *answer {
	r := &http.Request{
		Method: method, URL: &url.URL{Path: path}, Header: http.Header{},
		Body: http.NoBody, ContentLength: int64(len(body)),
	}
	if body != nil {
		r.Body = readCloser{bytes.NewReader(body)}
		r.Header.Set("Content-Type", mediaType)
	}
	a := &answer{header: http.Header{}}
	library.ServeHTTP(a, r)
	return a
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// serveReferrers corrects what the library answers: it takes artifactType from
// the config only, does not filter by it, and answers in random order.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
func (s *Server) serveReferrers(w *bodyWriter, r *http.Request, req request) {
	a := callLibrary(s.library, r.Method, r.URL.Path, "", nil)
	var index v1.Index
	if a.status != http.StatusOK || json.Unmarshal(a.body.Bytes(), &index) != nil {
		writeError(w, http.StatusNotFound, "NOT_FOUND", "no referrers of "+req.path)
		return
	}
	wanted := r.URL.Query().Get("artifactType")
	kept := []v1.Descriptor{}
	for _, desc := range index.Manifests {
		m := callLibrary(s.library, http.MethodGet, "/v2/"+req.repository+"/manifests/"+desc.Digest.String(), "", nil)
		var artifact struct {
			ArtifactType string            `json:"artifactType"`
			Annotations  map[string]string `json:"annotations"`
		}
		if json.Unmarshal(m.body.Bytes(), &artifact) == nil {
			desc.Annotations = artifact.Annotations
			if artifact.ArtifactType != "" {
				desc.ArtifactType = artifact.ArtifactType
			}
		}
		if wanted == "" || desc.ArtifactType == wanted {
			kept = append(kept, desc)
		}
	}
	slices.SortFunc(kept, func(a, b v1.Descriptor) int { return cmp.Compare(a.Digest, b.Digest) })
	index.Manifests = kept
	if wanted != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	writeJSON(w, http.StatusOK, v1.MediaTypeImageIndex, index)
}

// putManifest tells the client, as the library does not, that its subject was
// understood, so that it does not write the fallback tag as well.
func (s *Server) putManifest(w *bodyWriter, r *http.Request, req request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, 32<<20)); err != nil {
		writeError(w, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", err.Error())
		return
	}
	var m struct {
		Subject *v1.Descriptor `json:"subject"`
	}
	if json.Unmarshal(body.Bytes(), &m) == nil && m.Subject != nil && !s.referrersOff() {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	r = r.Clone(r.Context())
	r.Body = readCloser{bytes.NewReader(body.Bytes())}
	seen := &statusWriter{ResponseWriter: w}
	s.library.ServeHTTP(seen, r)
	if seen.status == http.StatusCreated {
		s.notifier.manifestPushed(r, req, body.Bytes())
	}
}

// statusWriter notes what was answered.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// referrersOff reports whether a fault takes the referrers API away.
func (s *Server) referrersOff() bool {
	s.faultsMu.RLock()
	defer s.faultsMu.RUnlock()
	return slices.ContainsFunc(s.faults, func(a *activeFault) bool {
		return a.Kind == NotFound && a.match != nil && a.match.MatchString("/v2/name/referrers/")
	})
}
