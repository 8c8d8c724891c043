// Command thaw-bench-containerd starts images with containerd for thaw bench,
// which runs it: see --vs-containerd there.
//
// It is a program of its own because containerd's client would double thaw, and
// cost each of thaw's own starts some milliseconds.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/bench"
	"github.com/thaw-project/thaw/internal/bench/containerd"
)

func main() {
	var opts containerd.Options
	flag.StringVar(&opts.Socket, "socket", "", "containerd's socket")
	flag.StringVar(&opts.Snapshotter, "snapshotter", "overlayfs", "one that it has")
	flag.StringVar(&opts.Image, "image", "", "reference, in full")
	flag.StringVar(&opts.Ready, "ready", "", "the container is ready when this answers")
	flag.BoolVar(&opts.PlainHTTP, "plain-http", false, "speak plain http to the registry")
	flag.BoolVar(&opts.Tuned, "tuned", false, "pull in parallel ranges, unpack in parallel")
	flag.Func("env", "environment variable KEY=VALUE; repeatable", func(s string) error {
		opts.Env = append(opts.Env, s)
		return nil
	})
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Started by thaw bench --vs-containerd; what they say to each other is internal/bench/program.go.")
		flag.PrintDefaults()
	}
	flag.Parse()
	opts.Args = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := bench.Serve(ctx, containerd.New(opts), os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
