package kubernetes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"

	"github.com/thaw-project/thaw/internal/sources"
)

const (
	maxPods     = 100_000
	maxVersions = 1000 // of a pod
	maxEvents   = 1_000_000
)

// Reader collects objects. The zero value is ready.
type Reader struct {
	pods    map[string]*seen // by namespace/name/uid
	order   []string
	events  map[string][]*event // by namespace/name of the pod
	n       int                 // of events
	seen    map[string]bool     // events, by their UID
	Skipped int                 // objects of other kinds
}

// seen is a pod as it was seen, once or more often.
type seen struct{ versions []*pod }

// Read takes a file: objects and lists of them, as JSON one after another or as YAML.
func (r *Reader) Read(b []byte) error {
	b = bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\ufeff")))
	if len(b) == 0 {
		return errors.New("the file is empty")
	}
	if b[0] != '{' && b[0] != '[' {
		return r.yaml(b)
	}
	return sources.Documents(b, func(raw json.RawMessage) error { return r.object(raw, "", 0) })
}

// yaml reads documents of YAML, by way of JSON.
func (r *Reader) yaml(b []byte) error {
	for dec := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var v any
		err := dec.Decode(&v)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read YAML: %w", err)
		case v == nil:
			continue
		}
		if _, ok := v.(map[string]any); !ok {
			return errors.New("this is neither JSON nor YAML of objects: want kubectl get pods,events -o json")
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("read YAML: %w", err)
		}
		if err := r.object(raw, "", 0); err != nil {
			return err
		}
	}
}

// maxNested is how deep lists may be in others.
const maxNested = 3

// object reads one, or a list. kind is what it is if it does not say so.
func (r *Reader) object(raw json.RawMessage, kind string, depth int) error {
	if len(raw) > 0 && raw[0] == '[' {
		raw = append(append([]byte(`{"kind":"List","items":`), raw...), '}')
	}
	var o struct {
		Kind   string            `json:"kind"`
		Items  []json.RawMessage `json:"items"`
		Type   string            `json:"type"` // of --output-watch-events
		Object json.RawMessage   `json:"object"`
	}
	if json.Unmarshal(raw, &o) != nil || depth > maxNested {
		r.Skipped++
		return nil
	}
	if o.Kind == "" {
		o.Kind = kind
	}
	switch {
	case o.Kind == "" && o.Object != nil:
		return r.object(o.Object, "", depth+1)
	case o.Kind == "List" || o.Kind == "PodList" || o.Kind == "EventList":
		of := map[string]string{"PodList": "Pod", "EventList": "Event"}[o.Kind]
		for _, one := range o.Items {
			if err := r.object(one, of, depth+1); err != nil {
				return err
			}
		}
		return nil
	case o.Kind == "Pod":
		var p pod
		if err := json.Unmarshal(raw, &p); err != nil {
			return fmt.Errorf("pod: %w", err)
		}
		return r.pod(&p)
	case o.Kind == "Event":
		var e event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		return r.event(&e)
	}
	r.Skipped++
	return nil
}

func (r *Reader) pod(p *pod) error {
	if p.Metadata.Name == "" {
		return errors.New("a pod without a name")
	}
	key := p.Metadata.Namespace + "/" + p.Metadata.Name + "/" + p.Metadata.UID
	s := r.pods[key]
	if s == nil {
		if len(r.pods) >= maxPods {
			return fmt.Errorf("more than %d pods", maxPods)
		}
		if r.pods == nil {
			r.pods = map[string]*seen{}
		}
		s = &seen{}
		r.pods[key], r.order = s, append(r.order, key)
	}
	for _, v := range s.versions { // who watches sees the same again and again
		if v.Metadata.ResourceVersion != "" && v.Metadata.ResourceVersion == p.Metadata.ResourceVersion {
			return nil
		}
	}
	if len(s.versions) >= maxVersions {
		return fmt.Errorf("more than %d versions of the pod %s", maxVersions, p.Metadata.Name)
	}
	s.versions = append(s.versions, p)
	return nil
}

func (r *Reader) event(e *event) error {
	about := e.about()
	if about.Kind != "Pod" {
		r.Skipped++
		return nil
	}
	if uid := e.Metadata.UID; uid != "" {
		if r.seen[uid] {
			return nil // only its count and last time change
		}
		if r.seen == nil {
			r.seen = map[string]bool{}
		}
		r.seen[uid] = true
	}
	if r.n++; r.n > maxEvents {
		return fmt.Errorf("more than %d events", maxEvents)
	}
	if r.events == nil {
		r.events = map[string][]*event{}
	}
	key := about.Namespace + "/" + about.Name
	r.events[key] = append(r.events[key], e)
	return nil
}
