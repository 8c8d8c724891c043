// Package attach measures containers that somebody else starts through containerd.
//
// A [Watcher] follows containerd's events. When a container is made that is wanted, its
// root is watched from the moment the shim has mounted it, which is before the
// runtime makes the container of it; its first process is followed from when the task
// is there, and asked whether it is ready once it runs. What containerd, the kernel
// and the probe say of it becomes one run.
//
// Nothing of the container, or of who starts it, is changed or held up.
package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/thaw-project/thaw/internal/measure"
	"github.com/thaw-project/thaw/internal/measure/clock"
	"github.com/thaw-project/thaw/internal/profile"
	"github.com/thaw-project/thaw/internal/sources/containerd"
)

// Options say which containers are measured, and for how long each.
type Options struct {
	Address   string // containerd's socket
	Namespace string // empty: all
	Match     string // name, ID, or a pattern of images; empty: all
	Ready     string // what measure.Prober asks, in the container's network; empty: nobody is asked
	// Timeout is how long a start may take. One that is not ready by then is a run with an
	// error; without Ready it ends when a port listens, or then.
	Timeout time.Duration
	Settle  time.Duration // how long it is followed after it is ready
	// Routes are requests to make once it is ready, Repeat of each.
	Routes []measure.Route
	Repeat int
}

// Started is a container whose start was measured.
type Started struct {
	Namespace, Image, Snapshotter string
	Names                         []string // its ID first
	Service                       string   // as its labels have it
	Run                           profile.Run
	Signals                       []profile.Signal
}

// Watcher follows a containerd.
type Watcher struct {
	opts       Options
	observer   *measure.Observer
	conn       *grpc.ClientConn
	stream     eventsapi.Events_SubscribeClient
	containers containersapi.ContainersClient
	pid        int // of containerd; 0: not known
	cancel     context.CancelFunc
	wg         sync.WaitGroup

	mu       sync.Mutex // guards what follows
	events   []containerd.Event
	followed map[string]*follower
}

// maxEvents is how many events are remembered: a pull has some dozens.
const maxEvents = 10_000

// topics are the events that are asked for.
const topics = `topic~="^/(content|images|snapshot|containers|tasks|thaw)/"`

// New connects to containerd. When it returns no start that begins later is missed.
func New(ctx context.Context, opts Options, observer *measure.Observer) (*Watcher, error) {
	if opts.Match != "" {
		if _, err := path.Match(opts.Match, ""); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", opts.Match, err)
		}
	}
	w := &Watcher{opts: opts, observer: observer, followed: map[string]*follower{}}
	var err error
	if w.pid, err = peer(ctx, opts.Address); err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", opts.Address, err)
	}
	if w.conn, err = grpc.NewClient("unix://"+opts.Address, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", opts.Address, err)
	}
	w.containers = containersapi.NewContainersClient(w.conn)
	streaming, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	if err := w.subscribe(ctx, streaming); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("subscribe to containerd's events: %w", err), w.conn.Close())
	}
	return w, nil
}

// peer returns the process that listens on a socket.
func peer(ctx context.Context, socket string) (pid int, err error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return 0, errors.Join(e, err)
	}
	return int(cred.Pid), nil
}

// Close ends following, and waits until all is let go.
func (w *Watcher) Close() error {
	w.cancel()
	w.wg.Wait()
	return w.conn.Close()
}

// Watch measures starts until the context ends, or until containerd ends, which is an
// error. Each is called once a start was measured, one at a time.
func (w *Watcher) Watch(ctx context.Context, each func(*Started)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, w.cancel)
	defer stop()
	done := make(chan *Started)
	var lost error
	w.wg.Go(func() {
		defer cancel()
		for {
			e, err := w.next()
			if err != nil {
				if ctx.Err() == nil {
					lost = fmt.Errorf("events of containerd: %w", err)
				}
				return
			}
			w.take(ctx, e, done)
		}
	})
	w.wg.Go(func() { w.forget(ctx) })
	go func() {
		<-ctx.Done()
		w.wg.Wait()
		close(done)
	}()
	for s := range done {
		each(s)
	}
	return lost
}

const (
	forgetEvery = 2 * time.Second
	// lead is how long before a container was made something may have happened that it is
	// known by: who makes its first process is older.
	lead = 10 * time.Second
)

// forget has the observer let go of what no container needs that is followed.
func (w *Watcher) forget(ctx context.Context) {
	tick := time.NewTicker(forgetEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		oldest := clock.Now()
		w.mu.Lock()
		for _, f := range w.followed {
			oldest = min(oldest, f.made)
		}
		w.mu.Unlock()
		w.observer.Forget(oldest - lead)
	}
}

// take notes an event, and hands it to who follows its container.
func (w *Watcher) take(ctx context.Context, e containerd.Event, done chan<- *Started) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.events = append(w.events, e); len(w.events) > maxEvents {
		w.events = slices.Delete(w.events, 0, maxEvents/2)
	}
	id := e.Body.ContainerID
	if e.Topic == containerd.TopicContainer {
		id = e.Body.ID
	}
	if id == "" {
		return
	}
	key := e.Namespace + "/" + id
	f := w.followed[key]
	if e.Topic == containerd.TopicContainer && f == nil {
		f = newFollower(w, e)
		w.followed[key] = f
		w.wg.Go(func() {
			s := f.follow(ctx)
			w.mu.Lock()
			delete(w.followed, key)
			w.mu.Unlock()
			if s == nil {
				return
			}
			select {
			case done <- s:
			case <-ctx.Done():
			}
		})
	}
	if f != nil {
		select {
		case f.events <- e:
		default: // it does not care any more
		}
	}
}

// seen are the events so far, by time.
func (w *Watcher) seen() []containerd.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Clone(w.events)
	slices.SortStableFunc(all, func(a, b containerd.Event) int { return a.At.Compare(b.At) })
	return all
}

// container asks for what containerd knows of one.
func (w *Watcher) container(ctx context.Context, namespace, id string) (*containersapi.Container, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "containerd-namespace", namespace)
	r, err := w.containers.Get(ctx, &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return nil, err
	}
	return r.GetContainer(), nil
}

// Labels by which others know containers.
const (
	labelKind          = "io.cri-containerd.kind" // sandbox: a pod's pause container
	labelPodName       = "io.kubernetes.pod.name"
	labelContainerName = "io.kubernetes.container.name"
	labelNerdctl       = "nerdctl/name"
	labelCompose       = "com.docker.compose.service"
)

// names are what a container may be called.
func names(id string, labels map[string]string) []string {
	all := []string{id}
	for _, name := range []string{labels[labelNerdctl], labels[labelCompose], labels[labelContainerName], labels[labelPodName]} {
		if name != "" && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// matches reports whether a container is wanted: by one of its names, by the first
// characters of its ID, or by its image.
func matches(pattern, image string, names []string) bool {
	if pattern == "" {
		return true
	}
	if slices.Contains(names, pattern) || len(pattern) >= 8 && strings.HasPrefix(names[0], pattern) {
		return true
	}
	return matchImage(pattern, image)
}

// matchImage reports whether a pattern is of an image: of its whole reference, or of its
// last parts. A * is within a part; without a tag any tag will do.
func matchImage(pattern, image string) bool {
	forms := []string{image}
	name, _, _ := strings.Cut(image, "@")
	if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
		forms = append(forms, name, name[:at])
	} else {
		forms = append(forms, name)
	}
	for _, form := range forms {
		for {
			if ok, err := path.Match(pattern, form); err == nil && ok {
				return true
			}
			_, rest, more := strings.Cut(form, "/")
			if !more {
				break
			}
			form = rest
		}
	}
	return false
}
