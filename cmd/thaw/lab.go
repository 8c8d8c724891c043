package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/lab"
)

func newLabCommand() *cobra.Command {
	return group(&cobra.Command{Use: "lab", Short: "A registry that behaves like one far away"}, newLabServeCommand())
}

type labServeOptions struct {
	dir      string
	listen   string
	net      string
	ttfb     time.Duration
	connect  time.Duration
	connRate string
	rate     string
	faults   []string
	notify   []string
	secret   string
	json     bool
	stdin    bool // end when standard input does
}

func newLabServeCommand() *cobra.Command {
	var opts labServeOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve an OCI layout as a registry with a cloud's network, and its faults",
		Long: `Serve an OCI layout as a registry with a cloud's network, and its faults.

Each ref name of the layout is a repository NAME:latest, or NAME:TAG. Pushes are
accepted and lost at exit; the layout is not written. Plain HTTP, until Ctrl-C.

Networks: cloud (20 ms to the first byte, 60 MB/s a connection, 250 MB/s in all),
slow (50 ms, 10, 25), fast (2 ms, 200, 1000), none.

Faults: KIND[=ARG][,after=N][,first=N][,every=N][,match=REGEX on the path]. Of the
requests that match, the first "after" are spared, then "first" are hit, of these
every "every"th. Kinds, with their default ARG:
  reset[=BYTES]         RST after BYTES of the body; without, before the header
  429[=1s]              too many requests, with Retry-After (0s: without)
  401                   not authorized; match=^/token refuses tokens
  web-page              200 and HTML
  5xx[=503]             a server's error
  404                   not found; match=/referrers/ takes that API away
  wrong-range[=1]       a range BYTES further on; lie[:BYTES] hides it
  no-ranges             200 and all of the blob
  flip[=0]              one byte inverted: BYTES of the body, @BYTES of the blob, /N every Nth
  stall[=0]             silence after BYTES, or BYTES:D or D for that long
  token[=60s]           bearer tokens that expire; D:USER:PASSWORD to get one
  redirect[=60s]        blobs at signed URLs of another port that expire
  short[=1]             body BYTES shorter than its Content-Length
  delay[=1s]            that much later
Those of the body (reset, flip, stall, short) concern blobs unless match says else.

While it runs: GET /stats, POST /stats/reset, GET and POST /faults (a JSON array of
such strings), POST /warm (read all blobs into the page cache).`,
		Example: `  thaw lab serve --dir ./layout --net slow
  thaw lab serve --dir ./layout --fault '5xx,after=20,first=10' --fault 'reset=100000,every=3'
  thaw lab serve --notify http://127.0.0.1:8080/notify --notify-authorization "Bearer $SECRET"`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			network, err := opts.network(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			if opts.stdin {
				ctx = untilEOF(ctx, cmd.InOrStdin())
			}
			return runLabServe(ctx, opts, network, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.dir, "dir", "", "OCI layout to serve (default none: only what is pushed)")
	flags.StringVar(&opts.listen, "listen", "127.0.0.1:5000", "address; port 0 takes a free one")
	flags.StringVar(&opts.net, "net", "cloud", "network: "+strings.Join(lab.Profiles, ", "))
	complete(cmd, "net", lab.Profiles...)
	flags.DurationVar(&opts.ttfb, "ttfb", 0, "time to first byte, instead of the network's")
	flags.DurationVar(&opts.connect, "connect", 0, "cost of a new connection")
	flags.StringVar(&opts.connRate, "conn-rate", "", "bytes/s of a connection (as 60MB), instead of the network's")
	flags.StringVar(&opts.rate, "rate", "", "bytes/s in all, instead of the network's")
	flags.StringArrayVar(&opts.faults, "fault", nil, "a fault, see above; repeatable")
	flags.StringArrayVar(&opts.notify, "notify", nil, "URL to tell of every push, as distribution's registry does; repeatable")
	flags.StringVar(&opts.secret, "notify-authorization", "", "Authorization header of that, such as 'Bearer SECRET'")
	flags.BoolVar(&opts.json, "json", false, "print the address and images as JSON")
	flags.BoolVar(&opts.stdin, "until-stdin-ends", false, "end when standard input does")
	_ = flags.MarkHidden("until-stdin-ends") // it is there
	return cmd
}

// untilEOF is a context that also ends when there is nothing more to read: whoever
// started this program for itself is gone then.
func untilEOF(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, r) // an error is an end too
	}()
	return ctx
}

// network is the named one with what flags changed of it.
func (o labServeOptions) network(changed func(string) bool) (lab.Network, error) {
	n, err := lab.Profile(o.net)
	if err != nil {
		return n, err
	}
	if changed("ttfb") {
		n.TTFB = o.ttfb
	}
	if changed("connect") {
		n.Connect = o.connect
	}
	for _, rate := range []struct {
		flag, value string
		to          *int64
	}{{"conn-rate", o.connRate, &n.ConnRate}, {"rate", o.rate, &n.Rate}} {
		if !changed(rate.flag) {
			continue
		}
		if *rate.to, err = units.FromHumanSize(strings.TrimSuffix(rate.value, "/s")); err != nil {
			return n, fmt.Errorf("parse --%s: %w", rate.flag, err)
		}
	}
	return n, nil
}

func runLabServe(ctx context.Context, opts labServeOptions, network lab.Network, stdout io.Writer) error {
	var faults []lab.Fault
	for _, text := range opts.faults {
		f, err := lab.ParseFault(text)
		if err != nil {
			return err
		}
		faults = append(faults, f)
	}
	var endpoints []lab.Endpoint
	for _, u := range opts.notify {
		endpoints = append(endpoints, lab.Endpoint{URL: u, Authorization: opts.secret})
	}
	s, err := lab.New(lab.Options{Dir: opts.dir, Listen: opts.listen, Network: network, Faults: faults, Notify: endpoints})
	if err != nil {
		return err
	}
	if err := printLab(stdout, s, opts); err != nil {
		_ = s.Close() // the first error says more
		return err
	}
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return s.Shutdown(grace)
}

func printLab(stdout io.Writer, s *lab.Server, opts labServeOptions) error {
	images := s.Images()
	if opts.json {
		return json.NewEncoder(stdout).Encode(struct {
			Version int         `json:"version"`
			Address string      `json:"address"`
			Net     string      `json:"net"`
			Images  []lab.Image `json:"images"`
		}{1, s.Addr(), opts.net, images})
	}
	names := make([]string, 0, len(images))
	for _, image := range images {
		names = append(names, image.Name)
	}
	_, err := fmt.Fprintf(stdout, "serving %s at http://%s (net %s)\n", strings.Join(names, " "), s.Addr(), opts.net)
	return err
}
