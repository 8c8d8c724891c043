package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/indexstore"
	"github.com/thaw-project/thaw/internal/oci"
	"github.com/thaw-project/thaw/internal/registry"
	"github.com/thaw-project/thaw/internal/watch"
)

// envWatchSecret holds the secret where there is no file with one.
const envWatchSecret = "THAW_WATCH_SECRET"

type indexWatchOptions struct {
	listen           string
	secretFile       string
	tlsCert, tlsKey  string
	registry         string
	match, platforms []string
	minSize          string
	maxRead          float64
	queue, workers   int
	attempts         int
	backoff, drain   time.Duration
	bundle           bool
	plainHTTP, json  bool
}

func newIndexWatchCommand(g *globalOptions) *cobra.Command {
	var opts indexWatchOptions
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Take a registry's push notifications and index every pushed image that is worth it",
		Long: `Take a registry's push notifications and index every pushed image that is worth it:
an HTTP server whose /notify takes distribution's webhook, ECR's event from
EventBridge and Harbor's webhook (also as CloudEvents), and puts what they tell of
into a queue. Each image's index is made in one pass over its layers and pushed
beside it. Of an image index all linux platforms are indexed, or those of --platform.

An image is not indexed, and the log, the answer, /metrics, /status and --json say
why, when it is too-small, already-indexed, not-an-image (a signature, a chart),
own-index (what this pushes), of an other-platform, gone, not-matched by --match, or
most-bytes-read: recorded starts of it, or of another image of its repository (thaw
trace ls), read more than --max-read of it.

The queue is kept in a file: what was answered 202 is done, if need be after a
restart. When it is full the answer is 503 with Retry-After, and the registry comes
again. Failures are tried again, later and later. With ?wait=5m the answer waits for
what becomes of the images.

Ctrl-C: takes no more, and finishes what is in the queue, for --drain at most; once
more: ends at once. What is left the next one does.

A notification has to bring the secret of --secret-file (or ` + envWatchSecret + `) as
"Authorization: Bearer SECRET", as the whole Authorization header, or as the password of
basic authentication. Without a secret only this machine is listened to. Who has it can
make this machine ask any registry for any image: --registry and --match limit that.

GET /healthz and /metrics need no secret, /status does. docs/index-watch.md says how
to set up distribution, ECR and Harbor.

Exit codes: 0 ended by Ctrl-C or SIGTERM, 1 failed, 2 wrong usage.`,
		Example: `  thaw index watch --listen :8080 --secret-file /etc/thaw/watch-secret --registry registry.lan:5000
  curl -H "Authorization: Bearer $SECRET" http://127.0.0.1:8080/status`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runIndexWatch(cmd, g, &opts) },
	}
	f := cmd.Flags()
	f.StringVar(&opts.listen, "listen", "127.0.0.1:8080", "address to take notifications at; port 0 takes a free one")
	f.StringVar(&opts.secretFile, "secret-file", "", "file of the secret, or of several, one a line")
	f.StringVar(&opts.tlsCert, "tls-cert", "", "file of a certificate in PEM: speak https")
	f.StringVar(&opts.tlsKey, "tls-key", "", "file of its key")
	f.StringVar(&opts.registry, "registry", "", "host of the registry, instead of what notifications say")
	f.StringArrayVar(&opts.match, "match", nil, "only images whose REPOSITORY or HOST/REPOSITORY matches, such as team/*; repeatable")
	f.StringArrayVar(&opts.platforms, "platform", nil, "only these platforms, such as linux/amd64; repeatable (default all of linux)")
	f.StringVar(&opts.minSize, "min-size", "10MB", "layers of less in all are too small")
	f.Float64Var(&opts.maxRead, "max-read", 0.8, "share of an image that its start may read for an index to be worth it")
	f.IntVar(&opts.queue, "queue", 1000, "images in the queue at most")
	f.IntVar(&opts.workers, "workers", 1, "images that are indexed at once")
	f.IntVar(&opts.attempts, "attempts", 6, "how often an image is tried")
	f.DurationVar(&opts.backoff, "backoff", 5*time.Second, "how long after the first failure; then four times as long each time, an hour at most")
	f.DurationVar(&opts.drain, "drain", 5*time.Minute, "how long finishing what is in the queue may take at the end")
	f.BoolVar(&opts.bundle, "bundle", false, "also make a start-up bundle where a start of an image of the repository was recorded here")
	f.BoolVar(&opts.plainHTTP, "plain-http", false, "speak plain http to the host of --registry")
	f.BoolVar(&opts.json, "json", false, "print what becomes of each image as a line of JSON")
	return cmd
}

func runIndexWatch(cmd *cobra.Command, g *globalOptions, opts *indexWatchOptions) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	cfg, err := g.load()
	if err != nil {
		return err
	}
	if !cmd.Flags().Changed("log-level") { // what is done is the point of a service's log
		g.level = "info"
	}
	log, err := g.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	t := &watchTask{opts: opts, root: cfg.Root, log: log}
	wo, err := opts.check(cfg)
	if err != nil {
		return err
	}
	if t.minSize, t.platforms, err = opts.worth(); err != nil {
		return err
	}
	insecure := cfg.Insecure
	if opts.plainHTTP {
		insecure = append(insecure, opts.registry)
	}
	t.client = registry.New(registry.Options{Insecure: insecure, Mirrors: cfg.Mirrors, UserAgent: "thaw/" + buildVersion(), Log: log})
	defer t.client.Close()
	if t.store, err = indexstore.Open(filepath.Join(wo.Dir, "index")); err != nil {
		return err
	}
	t.sweep()
	wo.Index, wo.Log = t.index, log
	if opts.json {
		wo.Done = func(o watch.Outcome) { printLine(cmd.OutOrStdout(), log.Error, o) }
	}
	w, err := watch.New(wo)
	if err != nil {
		return err
	}
	defer w.Close()
	t.own = w.Own
	config, err := opts.tls()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", opts.listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := opts.announce(cmd.OutOrStdout(), l.Addr().String(), w.Queued()); err != nil {
		_ = l.Close() // the first error says more
		return err
	}
	return w.Serve(ctx, l, config, secondSignal(ctx))
}

// secondSignal returns a channel that is closed by a signal after ctx has ended.
func secondSignal(ctx context.Context) <-chan struct{} {
	kill := make(chan struct{})
	context.AfterFunc(ctx, func() {
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGINT, unix.SIGTERM)
		<-c
		close(kill)
	})
	return kill
}

// check makes the watcher's options of the flags.
func (o *indexWatchOptions) check(cfg config.Config) (watch.Options, error) {
	wo := watch.Options{Dir: filepath.Join(cfg.Root, "watch"), Registry: o.registry, Match: o.match,
		Queue: o.queue, Workers: o.workers, Attempts: o.attempts, Backoff: o.backoff, Drain: o.drain}
	if o.queue < 1 || o.workers < 1 || o.attempts < 1 || o.backoff <= 0 || o.drain < 0 {
		return wo, usageError{errors.New("--queue, --workers, --attempts, --backoff, --drain: want at least 1, and times that are not negative")}
	}
	if o.plainHTTP && o.registry == "" {
		return wo, usageError{errors.New("--plain-http is about the host of --registry")}
	}
	if o.registry != "" {
		if ref, err := oci.ParseReference(o.registry + "/name"); err != nil || ref.Registry != o.registry {
			return wo, usageError{fmt.Errorf("--registry %q: want a host", o.registry)}
		}
	}
	for _, m := range o.match {
		if _, err := path.Match(m, ""); err != nil {
			return wo, usageError{fmt.Errorf("--match %q: %w", m, err)}
		}
	}
	var err error
	if wo.Secrets, err = o.secrets(); err != nil {
		return wo, err
	}
	if len(wo.Secrets) == 0 && !loopback(o.listen) {
		return wo, usageError{fmt.Errorf("--listen %s: without a secret (--secret-file, %s) only this machine may be listened to", o.listen, envWatchSecret)}
	}
	return wo, nil
}

// loopback reports whether only this machine can reach an address.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (o *indexWatchOptions) secrets() ([]string, error) {
	text := os.Getenv(envWatchSecret)
	if o.secretFile != "" {
		b, err := os.ReadFile(o.secretFile)
		if err != nil {
			return nil, fmt.Errorf("read secret: %w", err)
		}
		if text = string(b); strings.TrimSpace(text) == "" {
			return nil, usageError{fmt.Errorf("--secret-file %s is empty", o.secretFile)}
		}
	}
	return strings.Fields(text), nil
}

// worth reads the flags about what is worth an index.
func (o *indexWatchOptions) worth() (minSize int64, platforms []v1.Platform, err error) {
	if minSize, err = units.FromHumanSize(o.minSize); err != nil || minSize < 0 {
		return 0, nil, usageError{fmt.Errorf("--min-size %q: want a size such as 10MB", o.minSize)}
	}
	if o.maxRead <= 0 || o.maxRead > 1 {
		return 0, nil, usageError{fmt.Errorf("--max-read %v: want a share such as 0.8", o.maxRead)}
	}
	for _, s := range o.platforms {
		p, err := oci.ParsePlatform(s)
		if err != nil || p.OS != "linux" {
			return 0, nil, usageError{fmt.Errorf("--platform %q: want linux/ARCHITECTURE[/VARIANT]", s)}
		}
		platforms = append(platforms, p)
	}
	return minSize, platforms, nil
}

func (o *indexWatchOptions) tls() (*tls.Config, error) {
	if o.tlsCert == "" && o.tlsKey == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

func (o *indexWatchOptions) announce(stdout io.Writer, addr string, queued int) error {
	scheme := "http"
	if o.tlsCert != "" {
		scheme = "https"
	}
	if o.json {
		return json.NewEncoder(stdout).Encode(struct {
			Version int    `json:"version"`
			Address string `json:"address"`
			Queued  int    `json:"queued"`
		}{outputVersion, addr, queued})
	}
	_, err := fmt.Fprintf(stdout, "taking notifications at %s://%s/notify (%d in the queue)\n", scheme, addr, queued)
	return err
}

// printLine prints an outcome as one line.
func printLine(stdout io.Writer, complain func(string, ...any), o watch.Outcome) {
	err := json.NewEncoder(stdout).Encode(struct {
		Version int       `json:"version"`
		Time    time.Time `json:"time"`
		watch.Outcome
	}{outputVersion, time.Now().UTC(), o})
	if err != nil {
		complain("result is not printed", "err", err)
	}
}
