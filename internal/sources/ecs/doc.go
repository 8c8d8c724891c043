// Package ecs reads what Amazon ECS says of tasks' starts, and makes records of it.
//
// Three documents tell of a start: the answer of DescribeTasks and EventBridge's "ECS
// Task State Change", which have the task's times, and the task metadata that containers
// can ask for, which has the containers' and since when each is healthy. Answers of
// DescribeTargetHealth add when the load balancer knew. [Reader] takes them in any
// order and number, as they lie in files; what is about one task becomes one run.
//
// The package does no I/O.
package ecs
