package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// Happening is what a node's users may want to see among the events of the cluster.
type Happening struct {
	Reason string    // in the manner of Kubernetes: ImageNotLazy
	Action string    // what was done: BringWhole
	Note   string    // for people
	Key    string    // what happens again has the same one
	First  time.Time // when it happened first
	Last   time.Time
	Count  int
}

// controller is who reports events.
const controller = "thaw.dev/thaw"

// maxNote is what the API takes.
const maxNote = 1024

// microTime is how the API writes times of events.
const microTime = "2006-01-02T15:04:05.000000Z07:00"

// event is an object of events.k8s.io/v1, as far as it is set here:
// https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/
type event struct {
	APIVersion          string        `json:"apiVersion"`
	Kind                string        `json:"kind"`
	Metadata            eventMetadata `json:"metadata"`
	EventTime           string        `json:"eventTime"`
	ReportingController string        `json:"reportingController"`
	ReportingInstance   string        `json:"reportingInstance"`
	Action              string        `json:"action"`
	Reason              string        `json:"reason"`
	Regarding           reference     `json:"regarding"`
	Note                string        `json:"note"`
	Type                string        `json:"type"`
}

type eventMetadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// series is what an event becomes that happens again.
type series struct {
	Series struct {
		Count            int    `json:"count"`
		LastObservedTime string `json:"lastObservedTime"`
	} `json:"series"`
}

// eventsPath is where events of nodes are: what has no namespace has them in default.
const eventsPath = "/apis/events.k8s.io/v1/namespaces/default/events"

// Tell makes an event of the node, or counts one that is there already.
func (c *Cluster) Tell(ctx context.Context, h Happening) error {
	sum := sha256.Sum256([]byte(h.Key + " " + h.First.UTC().String()))
	name := eventName(c.Node) + "." + hex.EncodeToString(sum[:8])
	note := strings.ToValidUTF8(h.Note[:min(len(h.Note), maxNote)], "")
	made := event{APIVersion: "events.k8s.io/v1", Kind: "Event", Metadata: eventMetadata{Name: name, Namespace: "default"},
		EventTime: h.First.UTC().Format(microTime), ReportingController: controller, ReportingInstance: c.Node[:min(len(c.Node), 128)],
		// The kubelet, too, has the node's name for its uid: kubectl describe node looks for that.
		Regarding: reference{APIVersion: "v1", Kind: "Node", Name: c.Node, UID: c.Node},
		Action:    h.Action, Reason: h.Reason, Note: note, Type: "Warning"}
	status, err := c.send(ctx, http.MethodPost, eventsPath, "application/json", made)
	if err != nil || status != http.StatusConflict || h.Count < 2 {
		if status == http.StatusConflict { // it was told before this process was started
			return nil
		}
		return err
	}
	var again series
	again.Series.Count, again.Series.LastObservedTime = h.Count, h.Last.UTC().Format(microTime)
	_, err = c.send(ctx, http.MethodPatch, eventsPath+"/"+name, "application/merge-patch+json", again)
	return err
}

// eventName makes the begin of an object's name of a node's, which may be as long as
// any.
func eventName(node string) string { return strings.Trim(node[:min(len(node), 200)], ".-") }

// send returns the status also of answers that are no error here: a conflict.
func (c *Cluster) send(ctx context.Context, method, path, kind string, body any) (status int, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", kind)
	if err := c.authorize(req); err != nil {
		return 0, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("tell the cluster: %w", err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what it says is for people
	if resp.StatusCode >= 400 && resp.StatusCode != http.StatusConflict {
		return resp.StatusCode, fmt.Errorf("tell the cluster: %s: %s", resp.Status, bytes.TrimSpace(answer))
	}
	return resp.StatusCode, nil
}

// tellAgain is how often what goes on happening is told.
const tellAgain = 10 * time.Minute

// TellAll tells what look finds until ctx ends, looking every interval: what is new
// since it was called at once, what happens again every ten minutes. What cannot be told
// is tried again at the next look.
func (c *Cluster) TellAll(ctx context.Context, interval time.Duration, look func(context.Context) ([]Happening, error), log *slog.Logger) {
	begun := time.Now()
	told := map[string]time.Time{} // when each was, by the Last that was told
	at := map[string]time.Time{}   // and when it was told
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failed := false
	for {
		all, err := look(ctx)
		if err != nil {
			all = nil // there may be no daemon just now
		}
		seen := map[string]bool{}
		for _, h := range all {
			seen[h.Key] = true
			if h.Last.Before(begun) || !h.Last.After(told[h.Key]) || time.Since(at[h.Key]) < tellAgain && !at[h.Key].IsZero() {
				continue
			}
			if err := c.Tell(ctx, h); err != nil {
				if !failed && ctx.Err() == nil {
					log.Warn("the cluster is not told of fallbacks; tried again", "err", err)
				}
				failed = true
				break
			}
			failed = false
			told[h.Key], at[h.Key] = h.Last, time.Now()
		}
		for key := range told {
			if err == nil && !seen[key] {
				delete(told, key)
				delete(at, key)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
