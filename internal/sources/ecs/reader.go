package ecs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/sources"
)

// ErrContainer is returned for what one container is told of itself: it has no pull times.
var ErrContainer = errors.New("this is the metadata of one container: the task's is at ${ECS_CONTAINER_METADATA_URI_V4}/task")

const (
	maxTasks    = 100_000
	maxMetadata = 1000 // of one task
	maxTargets  = 100_000
)

// Reader collects documents. The zero value is ready.
type Reader struct {
	tasks   map[string]*known // by ARN
	order   []string
	targets map[string]*target // by address
	Skipped int                // documents that are about something else
}

// known is what documents say of one task.
type known struct {
	task     *Task // the newest version's, with older ones' where it says nothing
	metadata []Metadata
}

// target is what the load balancer said of an address, by time.
type target struct{ seen []state }

type state struct {
	at    time.Time
	state string
}

// Read takes a file: any number of documents one after another, or lines with
// something before the JSON, as logs have it.
func (r *Reader) Read(b []byte) error {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	trimmed := bytes.TrimSpace(b)
	if len(trimmed) == 0 {
		return errors.New("the file is empty")
	}
	if trimmed[0] != '{' && trimmed[0] != '[' {
		return r.lines(trimmed)
	}
	return sources.Documents(trimmed, func(raw json.RawMessage) error { return r.document(raw, 0) })
}

// lines reads what aws logs tail and its like print: a time and a stream's name, then
// the event.
func (r *Reader) lines(b []byte) error {
	found := false
	n := 0
	for line := range bytes.Lines(b) {
		n++
		i := bytes.IndexByte(line, '{')
		if i < 0 || !json.Valid(line[i:]) {
			continue // what somebody else logged
		}
		found = true
		if err := r.document(bytes.TrimSpace(line[i:]), 0); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if !found {
		return errors.New("this is not JSON, nor lines with JSON in them")
	}
	return nil
}

// maxNested is how deep documents are looked for in others.
const maxNested = 3

// document reads one, which may have others in it.
func (r *Reader) document(raw json.RawMessage, depth int) error {
	if depth > maxNested {
		r.Skipped++
		return nil
	}
	switch {
	case len(raw) > 0 && raw[0] == '[':
		var all []json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil {
			return err
		}
		for _, one := range all {
			if err := r.document(one, depth+1); err != nil {
				return err
			}
		}
		return nil
	case len(raw) == 0 || raw[0] != '{':
		r.Skipped++
		return nil
	}
	// By the exact names: task metadata and tasks have some in common but for case.
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return err
	}
	has := func(names ...string) bool {
		for _, name := range names {
			if keys[name] != nil {
				return true
			}
		}
		return false
	}
	switch {
	case has("detail-type"):
		return r.event(keys)
	case has("TargetHealthDescriptions"):
		return r.targetHealth(raw)
	case has("tasks", "Tasks"):
		var t Tasks
		if err := json.Unmarshal(raw, &t); err != nil {
			return fmt.Errorf("tasks: %w", err)
		}
		for i := range t.Tasks {
			if err := r.task(&t.Tasks[i]); err != nil {
				return err
			}
		}
		return nil
	case has("TaskARN") && !has("DockerId"):
		var m Metadata
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("task metadata: %w", err)
		}
		return r.metadata(m)
	case has("taskArn", "TaskArn") && has("containers", "Containers", "taskDefinitionArn", "TaskDefinitionArn"):
		var t Task
		if err := json.Unmarshal(raw, &t); err != nil {
			return fmt.Errorf("task: %w", err)
		}
		return r.task(&t)
	case has("DockerId"):
		return ErrContainer
	case has("events"): // aws logs filter-log-events, get-log-events
		return r.logged(keys["events"], depth)
	}
	r.Skipped++
	return nil
}

// event reads one of EventBridge's.
func (r *Reader) event(keys map[string]json.RawMessage) error {
	var kind string
	if err := json.Unmarshal(keys["detail-type"], &kind); err != nil || kind != "ECS Task State Change" {
		r.Skipped++
		return nil
	}
	var t Task
	if err := json.Unmarshal(keys["detail"], &t); err != nil {
		return fmt.Errorf("event %s: %w", kind, err)
	}
	return r.task(&t)
}

// logged reads events that were kept in CloudWatch Logs.
func (r *Reader) logged(raw json.RawMessage, depth int) error {
	var events []struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(raw, &events) != nil {
		r.Skipped++
		return nil
	}
	for _, e := range events {
		message := strings.TrimSpace(e.Message)
		if !strings.HasPrefix(message, "{") || !json.Valid([]byte(message)) {
			r.Skipped++
			continue
		}
		if err := r.document(json.RawMessage(message), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) known(arn string) (*known, error) {
	if arn == "" {
		return nil, errors.New("a task without its ARN")
	}
	if k := r.tasks[arn]; k != nil {
		return k, nil
	}
	if len(r.tasks) >= maxTasks {
		return nil, fmt.Errorf("more than %d tasks", maxTasks)
	}
	if r.tasks == nil {
		r.tasks = map[string]*known{}
	}
	k := &known{}
	r.tasks[arn], r.order = k, append(r.order, arn)
	return k, nil
}

// task takes what is said of a task. Events come more than once and in any order: the
// highest version counts, and of lower ones what that does not say.
func (r *Reader) task(t *Task) error {
	k, err := r.known(t.TaskARN)
	if err != nil {
		return err
	}
	if k.task == nil {
		k.task = t
		return nil
	}
	newer, older := t, k.task
	if newer.Version < older.Version {
		newer, older = older, newer
	}
	for _, at := range [][2]*Time{{&newer.CreatedAt, &older.CreatedAt}, {&newer.ConnectivityAt, &older.ConnectivityAt}, {&newer.PullStartedAt, &older.PullStartedAt},
		{&newer.PullStoppedAt, &older.PullStoppedAt}, {&newer.StartedAt, &older.StartedAt}, {&newer.StoppedAt, &older.StoppedAt}} {
		if at[0].IsZero() {
			*at[0] = *at[1]
		}
	}
	for _, s := range [][2]*string{{&newer.Group, &older.Group}, {&newer.TaskDefinitionARN, &older.TaskDefinitionARN}, {&newer.ClusterARN, &older.ClusterARN},
		{&newer.LaunchType, &older.LaunchType}, {&newer.AvailabilityZone, &older.AvailabilityZone}} {
		if *s[0] == "" {
			*s[0] = *s[1]
		}
	}
	if len(newer.Containers) == 0 {
		newer.Containers = older.Containers
	}
	for i := range newer.Containers { // the digest and the address come with a later version, and may go with a last one
		c := &newer.Containers[i]
		for _, o := range older.Containers {
			if o.Name != c.Name {
				continue
			}
			if c.ImageDigest == "" {
				c.ImageDigest = o.ImageDigest
			}
			if len(c.NetworkInterfaces) == 0 {
				c.NetworkInterfaces = o.NetworkInterfaces
			}
		}
	}
	if len(newer.Attachments) == 0 {
		newer.Attachments = older.Attachments
	}
	k.task = newer
	return nil
}

func (r *Reader) metadata(m Metadata) error {
	k, err := r.known(m.TaskARN)
	if err != nil {
		return err
	}
	if len(k.metadata) >= maxMetadata {
		return fmt.Errorf("more than %d documents about %s", maxMetadata, m.TaskARN)
	}
	k.metadata = append(k.metadata, m)
	return nil
}

// targetHealth takes what the load balancer said at a time; without a time it says
// nothing of since when.
func (r *Reader) targetHealth(raw json.RawMessage) error {
	var h TargetHealth
	if err := json.Unmarshal(raw, &h); err != nil {
		return fmt.Errorf("target health: %w", err)
	}
	if h.Time.IsZero() {
		return errors.New(`the answer of describe-target-health has no time: add one to each, such as with jq '{time: (now|todate)} + .'`)
	}
	for _, d := range h.Descriptions {
		if d.Target.ID == "" {
			continue
		}
		t := r.targets[d.Target.ID]
		if t == nil {
			if len(r.targets) >= maxTargets {
				return fmt.Errorf("more than %d targets", maxTargets)
			}
			if r.targets == nil {
				r.targets = map[string]*target{}
			}
			t = &target{}
			r.targets[d.Target.ID] = t
		}
		t.seen = append(t.seen, state{h.Time.Time, d.TargetHealth.State})
	}
	return nil
}

// Healthy reports whether the last task metadata of each task says that all its containers
// with a health check are healthy: nothing new is to come. Without any it is false.
func (r *Reader) Healthy() bool {
	checked := false
	for _, k := range r.tasks {
		if len(k.metadata) == 0 {
			continue
		}
		for _, c := range k.metadata[len(k.metadata)-1].Containers {
			if c.Health.Status != "" && c.Health.Status != "HEALTHY" {
				return false
			}
			checked = checked || c.Health.Status != ""
		}
	}
	return checked
}
