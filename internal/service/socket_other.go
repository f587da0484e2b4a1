//go:build !unix

package service

import "errors"

func lockFolder(string) (func(), error) {
	return nil, errors.New("this system has no flock; run the broker on Linux, macOS or a BSD")
}

func isServed(string) (bool, error) { return true, nil }
