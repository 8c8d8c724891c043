package kubernetes

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// moment is a time as objects have it: RFC 3339, cut to seconds, or with fractions; it
// may be null.
type moment struct {
	time.Time
	precision time.Duration
}

const lastYear = 2200 // so near that the time between any two fits a time.Duration

// UnmarshalJSON implements [json.Unmarshaler].
func (m *moment) UnmarshalJSON(b []byte) error {
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*m = moment{}
	if s == nil || *s == "" {
		return nil
	}
	at, err := time.Parse(time.RFC3339Nano, *s)
	switch {
	case err != nil:
		return fmt.Errorf("time %q is not RFC 3339", *s)
	case at.Year() <= 1:
		return nil
	case at.Year() < 1970 || at.Year() > lastYear:
		return fmt.Errorf("time %q is of no start", *s)
	}
	m.Time, m.precision = at.UTC(), time.Second
	if strings.Contains(*s, ".") {
		m.precision = time.Millisecond
	}
	return nil
}

type metadata struct {
	Name              string            `json:"name"`
	Namespace         string            `json:"namespace"`
	UID               string            `json:"uid"`
	ResourceVersion   string            `json:"resourceVersion"`
	CreationTimestamp moment            `json:"creationTimestamp"`
	Labels            map[string]string `json:"labels"`
	Annotations       map[string]string `json:"annotations"`
	OwnerReferences   []struct {
		Kind       string `json:"kind"`
		Name       string `json:"name"`
		Controller bool   `json:"controller"`
	} `json:"ownerReferences"`
}

type pod struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		NodeName       string      `json:"nodeName"`
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
	Status struct {
		Phase                 string      `json:"phase"`
		Reason                string      `json:"reason"`
		Message               string      `json:"message"`
		Conditions            []condition `json:"conditions"`
		ContainerStatuses     []status    `json:"containerStatuses"`
		InitContainerStatuses []status    `json:"initContainerStatuses"`
	} `json:"status"`
}

type container struct {
	Name           string          `json:"name"`
	Image          string          `json:"image"`
	RestartPolicy  string          `json:"restartPolicy"` // Always: a sidecar among the init containers
	ReadinessProbe json.RawMessage `json:"readinessProbe"`
	StartupProbe   json.RawMessage `json:"startupProbe"`
}

type condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	LastTransitionTime moment `json:"lastTransitionTime"`
}

type status struct {
	Name         string `json:"name"`
	ImageID      string `json:"imageID"`
	RestartCount int    `json:"restartCount"`
	State        states `json:"state"`
	LastState    states `json:"lastState"`
}

type states struct {
	Waiting *struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"waiting"`
	Running *struct {
		StartedAt moment `json:"startedAt"`
	} `json:"running"`
	Terminated *struct {
		StartedAt  moment `json:"startedAt"`
		FinishedAt moment `json:"finishedAt"`
	} `json:"terminated"`
}

// event is one of core/v1 or of events.k8s.io/v1, which is the same with other names.
type event struct {
	Metadata                 metadata  `json:"metadata"`
	InvolvedObject           reference `json:"involvedObject"`
	Regarding                reference `json:"regarding"`
	Reason                   string    `json:"reason"`
	Message                  string    `json:"message"`
	Note                     string    `json:"note"`
	EventTime                moment    `json:"eventTime"`
	FirstTimestamp           moment    `json:"firstTimestamp"`
	DeprecatedFirstTimestamp moment    `json:"deprecatedFirstTimestamp"`
}

type reference struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	FieldPath string `json:"fieldPath"` // spec.containers{NAME}
}

// about is what the event is about.
func (e *event) about() reference {
	if e.InvolvedObject.Kind != "" {
		return e.InvolvedObject
	}
	return e.Regarding
}

// text is the event's message.
func (e *event) text() string {
	if e.Message != "" {
		return e.Message
	}
	return e.Note
}

// first is when it happened first: later times of the same event are of restarts.
func (e *event) first() moment {
	for _, m := range []moment{e.EventTime, e.FirstTimestamp, e.DeprecatedFirstTimestamp} {
		if !m.IsZero() {
			return m
		}
	}
	return e.Metadata.CreationTimestamp
}

// of returns the container that an event is about, "" if it is about the whole pod, and
// whether that is an init container.
func (r *reference) of() (name string, init bool) {
	for prefix, is := range map[string]bool{"spec.containers{": false, "spec.initContainers{": true, "spec.ephemeralContainers{": true} {
		if rest, ok := strings.CutPrefix(r.FieldPath, prefix); ok {
			return strings.TrimSuffix(rest, "}"), is
		}
	}
	return "", false
}

// pulled is what the kubelet says in the event Pulled. Before Kubernetes 1.28 there is
// no waiting, before 1.30 no size.
var pulled = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^Successfully pulled image ".*" in ([0-9hmsµun.]+)(?: \(([0-9hmsµun.]+) including waiting\))?(?:\. Image size: ([0-9]+) bytes\.)?`)
})

// present is how it says that there was nothing to pull.
const present = "already present on machine"
