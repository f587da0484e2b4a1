module accessbroker.internal/e2e/tools/minio

go 1.26

require (
	github.com/minio/mc v0.0.0-20250313080218-cf909e1063a9
	github.com/minio/minio v0.0.0-20250907161309-07c3a429bfed
)
