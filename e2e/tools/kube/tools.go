//go:build tools

// Package kube pins the API server of Kubernetes, and the etcd that it needs, for
// the end-to-end tests. It is a module of its own, because their dependencies are
// not ours.
package kube

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
