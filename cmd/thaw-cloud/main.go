// Command thaw-cloud asks AWS and Kubernetes for thaw, which runs it: see package
// cloud for what they say to each other.
//
// It is a program of its own because the official clients would triple thaw, and cost
// each start of it milliseconds.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/cloud"
	"github.com/thaw-project/thaw/internal/cloud/aws"
	"github.com/thaw-project/thaw/internal/cloud/kube"
)

// handlers are what it can do.
var handlers = map[string]cloud.Handler{
	cloud.CallECS:        aws.ECS,
	cloud.CallKubernetes: kube.Pods,
	cloud.CallMetrics:    aws.Metrics,
}

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "Started by thaw, see docs/sources.md. The request comes on standard input, the answer goes to standard output.")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := cloud.Serve(ctx, os.Stdin, os.Stdout, handlers)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "thaw-cloud:", err)
		os.Exit(1)
	}
}
