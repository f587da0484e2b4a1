package main

import (
	"slices"
	"strings"
	"testing"
)

// The command finds the proxy and its authority, and no way around them, no identity and
// no credential.
func TestProxyEnvironment(t *testing.T) {
	e := childEnvironment{address: "127.0.0.1:4711", token: "T0KEN", trust: &trustFolder{"/tmp/x", "/tmp/x/ca.pem"}, injected: []string{"bearer", "aws-sigv4"}, placeholders: []string{"GH_TOKEN"}, identity: "CI_ID_TOKEN"}
	inherited := []string{
		"PATH=/bin", "NO_PROXY=*", "no_proxy=api.acme.test", "HTTPS_PROXY=http://evil.test", "SSL_CERT_FILE=/etc/all.pem", "BROKER_URL=https://b", "BROKER_TOKEN_FILE=/t",
		"SPIFFE_ENDPOINT_SOCKET=unix:///s", "GITHUB_TOKEN=real", "GH_TOKEN=real", "AWS_SECRET_ACCESS_KEY=real", "AWS_PROFILE=real", "AWS_REGION=eu-central-1",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN=real", "CI_ID_TOKEN=real", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=user.name", "GIT_CONFIG_VALUE_0=ana",
	}
	env := map[string]string{}
	for _, kv := range e.of(inherited) {
		name, value, _ := strings.Cut(kv, "=")
		if _, twice := env[name]; twice {
			t.Errorf("%s is set twice", name)
		}
		env[name] = value
	}
	const proxy = "http://broker:T0KEN@127.0.0.1:4711"
	for name, want := range map[string]string{
		"PATH": "/bin", "AWS_REGION": "eu-central-1", "HTTPS_PROXY": proxy, "https_proxy": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": "",
		"SSL_CERT_FILE": "/tmp/x/ca.pem", "GIT_SSL_CAINFO": "/tmp/x/ca.pem", "NODE_EXTRA_CA_CERTS": "/tmp/x/ca.pem", "NODE_USE_ENV_PROXY": "1", "SSL_CERT_DIR": "/tmp/x",
		"GH_TOKEN": placeholder, "AWS_ACCESS_KEY_ID": placeholder, "AWS_SECRET_ACCESS_KEY": placeholder,
		"GIT_CONFIG_COUNT": "3", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_KEY_1": "http.proxy", "GIT_CONFIG_VALUE_1": proxy, "GIT_CONFIG_KEY_2": "http.proxyAuthMethod",
	} {
		if got, ok := env[name]; !ok || got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"BROKER_URL", "BROKER_TOKEN_FILE", "SPIFFE_ENDPOINT_SOCKET", "GITHUB_TOKEN", "AWS_PROFILE", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "CI_ID_TOKEN"} {
		if got, ok := env[name]; ok {
			t.Errorf("%s is still %q", name, got)
		}
	}
	for name, value := range env {
		if slices.Contains([]string{"real", "http://evil.test", "*"}, value) {
			t.Errorf("%s is still %q", name, value)
		}
	}
}
