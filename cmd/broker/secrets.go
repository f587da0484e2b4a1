package main

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
)

// maxSecret is the longest secret that others gave us.
const maxSecret = 4096

// secret reads a file that holds a secret; an empty path is none.
func (c *checker) secret(key, path string) string {
	if path == "" {
		return ""
	}
	text, err := readSecret(c.file(path))
	if err != nil {
		c.bad(key, "%v", err)
	}
	return text
}

func readSecret(path string) (string, error) {
	text, err := os.ReadFile(path)
	secret := strings.TrimSpace(string(text))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading a secret: %w", err)
	case secret == "" || len(secret) > maxSecret:
		return "", fmt.Errorf("%s is empty, or too long for a secret", path)
	}
	return secret, nil
}

// roots reads a file of authorities; an empty path means the system's.
func (c *checker) roots(key, path string) *x509.CertPool {
	if path == "" {
		return nil
	}
	pool, err := readRoots(c.file(path))
	if err != nil {
		c.bad(key, "%v", err)
	}
	return pool
}
