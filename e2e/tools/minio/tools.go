//go:build tools

// Package minio pins the MinIO that the end-to-end tests run against, and its
// client, with which they make users. It is a module of its own, because
// MinIO's dependencies are not ours.
package minio

import (
	_ "github.com/minio/mc"
	_ "github.com/minio/minio"
)
