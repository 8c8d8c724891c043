// Package aws answers calls of package cloud with Amazon's SDK, in the program
// thaw-cloud.
//
// Where the endpoint, the region and the credentials come from is the SDK's business:
// environment, shared configuration, the roles of tasks and instances.
package aws

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"

	"github.com/thaw-project/thaw/internal/cloud"
)

// attempts is how often a request is made that is throttled or fails on the way; the
// SDK waits between them, up to 20 s.
const attempts = 8

// load returns the configuration of clients.
func load(ctx context.Context, region, profile string) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = attempts })
		}),
	}
	if region != "" {
		opts = append(opts, config.WithRegion(region))
	}
	if profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(profile))
	}
	c, err := config.LoadDefaultConfig(ctx, opts...)
	switch {
	case err != nil:
		return c, fmt.Errorf("load the configuration of AWS: %w", err)
	case c.Region == "":
		return c, &cloud.Error{Message: "no AWS region is set", Hint: "use --region, or set AWS_REGION"}
	}
	return c, nil
}

// denied are the codes by which services say that a permission is missing.
var denied = map[string]bool{"AccessDeniedException": true, "AccessDenied": true, "UnauthorizedOperation": true, "NotAuthorized": true}

// explain says what is to be done about an error of a call: action is the permission
// that it needs, resource what on.
func explain(err error, action, resource string) error {
	var api smithy.APIError
	if !errors.As(err, &api) {
		if err != nil && errors.Is(err, context.Canceled) {
			return err
		}
		return &cloud.Error{Message: fmt.Sprintf("%s: %v", action, err), Hint: "is the network there, and are there credentials? aws sts get-caller-identity says who you are"}
	}
	e := &cloud.Error{Message: fmt.Sprintf("%s: %s: %s", action, api.ErrorCode(), api.ErrorMessage())}
	switch code := api.ErrorCode(); {
	case denied[code]:
		e.Hint = fmt.Sprintf("the IAM policy of who asks needs Allow for %s on %s", action, resource)
	case code == "ClusterNotFoundException":
		e.Hint = "aws ecs list-clusters names those of the region"
	case code == "ServiceNotFoundException", code == "ServiceNotActiveException":
		e.Hint = "aws ecs list-services names those of the cluster"
	case code == "ThrottlingException" || code == "Throttling":
		e.Hint = fmt.Sprintf("AWS throttled each of %d tries: ask again later", attempts)
	case code == "ExpiredTokenException" || code == "ExpiredToken" || code == "UnrecognizedClientException" || code == "InvalidClientTokenId":
		e.Hint = "the credentials are no good, or no more: sign in again"
	}
	return e
}
