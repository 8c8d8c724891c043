package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Topics of the events that are used.
const (
	TopicContent         = "/content/create" // a blob is here
	TopicImageCreate     = "/images/create"
	TopicImageUpdate     = "/images/update"
	TopicSnapshotPrepare = "/snapshot/prepare"
	TopicSnapshotCommit  = "/snapshot/commit"
	TopicContainer       = "/containers/create"
	TopicTaskCreate      = "/tasks/create" // the runtime has made it
	TopicTaskStart       = "/tasks/start"
	TopicTaskExit        = "/tasks/exit"
)

// Event is one of containerd's, with what of it is used.
type Event struct {
	At        time.Time
	Namespace string
	Topic     string
	Body      Body
}

// Body has the fields of all events together, by the names of the protocol.
type Body struct {
	ID          string `json:"id,omitempty"` // of a container; of /tasks/exit: of the process
	ContainerID string `json:"container_id,omitempty"`
	Image       string `json:"image,omitempty"`
	Name        string `json:"name,omitempty"` // of an image, or of a committed snapshot
	Key         string `json:"key,omitempty"`  // of a snapshot
	Parent      string `json:"parent,omitempty"`
	Snapshotter string `json:"snapshotter,omitempty"`
	Digest      string `json:"digest,omitempty"`
	Size        int64  `json:"size,omitempty"`
	Pid         uint32 `json:"pid,omitempty"`
	ExitStatus  uint32 `json:"exit_status,omitempty"`
	Bundle      string `json:"bundle,omitempty"`
}

// timeForm is how ctr prints times: as Go does.
const timeForm = "2006-01-02 15:04:05.999999999 -0700 MST"

const maxEvents = 1_000_000

// Reader collects events. The zero value is ready.
type Reader struct {
	events  []Event
	Skipped int // lines that are no events
}

// Add takes an event.
func (r *Reader) Add(e Event) error {
	if len(r.events) >= maxEvents {
		return fmt.Errorf("more than %d events", maxEvents)
	}
	r.events = append(r.events, e)
	return nil
}

// Read takes what ctr events has printed, or nerdctl events --format json.
func (r *Reader) Read(b []byte) error {
	found := false
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		e, ok := parse(string(line))
		if !ok {
			r.Skipped++
			continue
		}
		found = true
		if err := r.Add(e); err != nil {
			return err
		}
	}
	if !found {
		return errors.New("no events here: want what ctr events prints")
	}
	return nil
}

// parse reads a line.
func parse(line string) (e Event, ok bool) {
	if strings.HasPrefix(line, "{") {
		return parseJSON(line)
	}
	// TIME NAMESPACE TOPIC JSON, and the time has spaces.
	at := strings.Index(line, " /")
	if at < 0 {
		return e, false
	}
	head, rest := line[:at], line[at+1:]
	i := strings.LastIndexByte(head, ' ')
	if i < 0 {
		return e, false
	}
	var err error
	if e.At, err = time.Parse(timeForm, head[:i]); err != nil {
		return e, false
	}
	var body string
	e.Namespace = head[i+1:]
	e.Topic, body, ok = strings.Cut(rest, " ")
	return e.finish(body, ok)
}

func parseJSON(line string) (e Event, ok bool) {
	var n struct{ Timestamp, Namespace, Topic, Event string }
	if json.Unmarshal([]byte(line), &n) != nil {
		return e, false
	}
	var err error
	if e.At, err = time.Parse(time.RFC3339Nano, n.Timestamp); err != nil {
		return e, false
	}
	e.Namespace, e.Topic = n.Namespace, n.Topic
	return e.finish(n.Event, true)
}

const lastYear = 2200 // so near that the time between any two fits a time.Duration

func (e Event) finish(body string, ok bool) (Event, bool) {
	if !ok || e.At.Year() < 1970 || e.At.Year() > lastYear {
		return e, false
	}
	e.At = e.At.UTC()
	return e, json.Unmarshal([]byte(body), &e.Body) == nil
}
