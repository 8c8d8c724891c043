package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// mediaTypeEvents is the type of the envelope.
const mediaTypeEvents = "application/vnd.docker.distribution.events.v2+json"

// Endpoint is told of pushes.
type Endpoint struct {
	URL           string
	Authorization string // header; may be empty
}

// How an endpoint is treated that does not take an event.
const (
	notifyTimeout = 5 * time.Second
	notifyBackoff = 100 * time.Millisecond
	maxPending    = 10_000
)

// The event, with the fields that distribution's registry fills.
// https://distribution.github.io/distribution/about/notifications/
type event struct {
	ID        string        `json:"id"`
	Timestamp time.Time     `json:"timestamp"`
	Action    string        `json:"action"`
	Target    eventTarget   `json:"target"`
	Request   eventRequest  `json:"request"`
	Actor     struct{}      `json:"actor"`
	Source    eventInstance `json:"source"`
}

type eventTarget struct {
	MediaType  string `json:"mediaType,omitempty"`
	Digest     string `json:"digest"`
	Size       int    `json:"size,omitempty"`
	Length     int    `json:"length,omitempty"`
	Repository string `json:"repository"`
	URL        string `json:"url"`
	Tag        string `json:"tag,omitempty"`
}

type eventRequest struct {
	ID        string `json:"id"`
	Addr      string `json:"addr"`
	Host      string `json:"host"`
	Method    string `json:"method"`
	UserAgent string `json:"useragent"`
}

type eventInstance struct {
	Addr       string `json:"addr"`
	InstanceID string `json:"instanceID"`
}

// notifier sends events to endpoints, to each one after the other, until it takes
// them, as distribution's registry does.
type notifier struct {
	instance string
	ctx      context.Context // of its requests: ended by close
	cancel   context.CancelFunc
	queues   []chan event
	senders  sync.WaitGroup
}

func newNotifier(endpoints []Endpoint) *notifier {
	n := &notifier{instance: rand.Text()}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for _, e := range endpoints {
		queue := make(chan event, maxPending)
		n.queues = append(n.queues, queue)
		n.senders.Go(func() { n.send(e, queue) })
	}
	return n
}

// close ends all sending; what is pending is lost, as in a registry that ends.
func (n *notifier) close() {
	n.cancel()
	n.senders.Wait()
}

func (n *notifier) send(e Endpoint, queue <-chan event) {
	client := &http.Client{Timeout: notifyTimeout}
	defer client.CloseIdleConnections()
	for {
		select {
		case ev := <-queue:
			for !n.post(client, e, ev) {
				select {
				case <-time.After(notifyBackoff):
				case <-n.ctx.Done():
					return
				}
			}
		case <-n.ctx.Done():
			return
		}
	}
}

// post reports whether the endpoint has taken the event: any 2xx or 3xx.
func (n *notifier) post(client *http.Client, e Endpoint, ev event) bool {
	b, err := json.Marshal(map[string][]event{"events": {ev}})
	if err != nil {
		return true // it will not become better
	}
	req, err := http.NewRequestWithContext(n.ctx, http.MethodPost, e.URL, bytes.NewReader(b))
	if err != nil {
		return true // the URL will not become better
	}
	req.Header.Set("Content-Type", mediaTypeEvents)
	if e.Authorization != "" {
		req.Header.Set("Authorization", e.Authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection is used again
	return resp.StatusCode >= 200 && resp.StatusCode < 400
}

// pushed tells of what a request has pushed; the path is where it can be had.
func (n *notifier) pushed(r *http.Request, t eventTarget, path string) {
	if len(n.queues) == 0 {
		return
	}
	t.Length = t.Size
	t.URL = "http://" + r.Host + "/v2/" + t.Repository + path
	ev := event{
		ID: rand.Text(), Timestamp: time.Now(), Action: "push", Target: t,
		Request: eventRequest{ID: rand.Text(), Addr: r.RemoteAddr, Host: r.Host, Method: r.Method, UserAgent: r.UserAgent()},
		Source:  eventInstance{Addr: r.Host, InstanceID: n.instance},
	}
	for _, q := range n.queues {
		select {
		case q <- ev:
		default: // nobody has listened for long
		}
	}
}

func (n *notifier) manifestPushed(r *http.Request, req request, b []byte) {
	t := eventTarget{MediaType: r.Header.Get("Content-Type"), Digest: digest.FromBytes(b).String(), Size: len(b), Repository: req.repository}
	if name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]; digest.Digest(name).Validate() != nil {
		t.Tag = name
	}
	n.pushed(r, t, "/manifests/"+t.Digest)
}

// blobPushed is called when an upload has ended; the digest is in the request.
func (n *notifier) blobPushed(r *http.Request, req request) {
	dgst := r.URL.Query().Get("digest")
	if dgst == "" {
		return
	}
	n.pushed(r, eventTarget{MediaType: "application/octet-stream", Digest: dgst, Repository: req.repository}, "/blobs/"+dgst)
}
