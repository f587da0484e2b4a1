package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/egress/forward"
	"accessbroker.internal/internal/handoff"
)

// A trustFolder has the certificate of a proxy's authority, for one command.
type trustFolder struct {
	dir, file string
}

func newTrustFolder(certificate []byte) (*trustFolder, error) {
	dir, err := os.MkdirTemp("", "broker-proxy-") // of mode 0700
	if err != nil {
		return nil, err
	}
	f := &trustFolder{dir, filepath.Join(dir, "ca.pem")}
	if err := os.WriteFile(f.file, certificate, 0o600); err != nil {
		f.remove()
		return nil, err
	}
	return f, nil
}

func (f *trustFolder) remove() { _ = os.RemoveAll(f.dir) }

// renew replaces the certificate at half of its lifetime, until ctx ends. Programs that
// start later read the new one.
func (f *trustFolder) renew(ctx context.Context, lifetime time.Duration, next func() ([]byte, error)) {
	tick := time.NewTicker(lifetime / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		certificate, err := next()
		if err != nil {
			continue // the old one is valid for as long again
		}
		fresh := f.file + ".new"
		if os.WriteFile(fresh, certificate, 0o600) == nil {
			_ = os.Rename(fresh, f.file) // a program reads one or the other
		}
	}
}

// A childEnvironment is the environment of a command behind a proxy.
type childEnvironment struct {
	address      string // of the proxy
	token        string
	trust        *trustFolder
	injected     []string // forms of injection in the rules
	placeholders []string
	identity     string // a variable with a token of the caller; empty: none
}

// placeholder is in the place of credentials that tools demand before they call.
const placeholder = "added-by-broker-proxy"

var allInjections = []string{api.InjectBearer, api.InjectBasic, api.InjectHeader, api.InjectSigV4}

// proxyVariables name the proxy, in the two spellings that tools read, and for npm, pip,
// cargo and yarn, whose own settings take precedence.
var proxyVariables = []string{
	"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy",
	"npm_config_proxy", "npm_config_https_proxy", "PIP_PROXY", "CARGO_HTTP_PROXY", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY",
}

// trustVariables name a file of authorities: OpenSSL, Go, Ruby and uv; git; Node; Python's
// requests; curl; AWS; npm, yarn, pip, cargo, bundler and Nix; Deno; gRPC; gcloud.
var trustVariables = []string{
	"SSL_CERT_FILE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE",
	"npm_config_cafile", "YARN_HTTPS_CA_FILE_PATH", "PIP_CERT", "CARGO_HTTP_CAINFO", "BUNDLE_SSL_CA_CERT", "NIX_SSL_CERT_FILE",
	"DENO_CERT", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
}

// emptied are variables that would lead a tool around the proxy.
var emptied = []string{"NO_PROXY", "no_proxy", "npm_config_noproxy"}

// identities are variables by which the command could act as the caller of the broker.
var identities = []string{
	"SPIFFE_ENDPOINT_SOCKET", "SPIFFE_WORKLOAD_API", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
}

// tokens are variables with credentials of common tools.
var tokens = []string{
	"GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN", "GITLAB_TOKEN", "CI_JOB_TOKEN", "BITBUCKET_TOKEN",
	"NPM_TOKEN", "NODE_AUTH_TOKEN", "CARGO_REGISTRY_TOKEN", "TWINE_PASSWORD", "UV_PUBLISH_TOKEN", "VAULT_TOKEN", "JIRA_API_TOKEN", "SLACK_BOT_TOKEN",
}

// of returns the environment of the command, from the environment of this process.
func (e childEnvironment) of(inherited []string) []string {
	env := handoff.Environment{Remove: slices.Concat(identities, tokens, []string{e.identity})}
	set := func(value string, names ...string) {
		for _, name := range names {
			env.Set = append(env.Set, [2]string{name, value})
		}
	}
	proxy := (&url.URL{Scheme: "http", User: url.UserPassword(forward.User, e.token), Host: e.address}).String()
	set(proxy, proxyVariables...)
	set("", emptied...)
	set(e.trust.file, trustVariables...)
	set(e.trust.dir, "SSL_CERT_DIR") // without it, OpenSSL and Go also trust the system's folder
	set("1", "NODE_USE_ENV_PROXY")
	if slices.Contains(e.injected, api.InjectSigV4) {
		env.Remove = append(env.Remove, handoff.InVariables(&api.Credential{Type: "aws"}).Remove...)
		set(placeholder, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
		set("true", "AWS_EC2_METADATA_DISABLED")
	}
	set(placeholder, e.placeholders...)
	gitSettings(&env, inherited, [2]string{"http.proxy", proxy}, [2]string{"http.proxyAuthMethod", "basic"})
	return env.Of(inherited)
}

// identityVariable returns the variable of --token-from, in which the caller's own token is.
func (a *app) identityVariable() string {
	name, _ := strings.CutPrefix(cmp.Or(a.client.tokenFrom, a.getenv("BROKER_TOKEN_FROM")), fromVariable)
	return name
}

// gitSettings adds settings of git, which take precedence over those of the user's files,
// to the ones that the environment has already (git-config(1), GIT_CONFIG_COUNT).
func gitSettings(env *handoff.Environment, inherited []string, settings ...[2]string) {
	n := 0
	for _, kv := range inherited {
		if text, ok := strings.CutPrefix(kv, "GIT_CONFIG_COUNT="); ok {
			n, _ = strconv.Atoi(text) // git refuses what is no number
		}
	}
	n = max(n, 0)
	for _, s := range settings {
		env.Set = append(env.Set, [2]string{fmt.Sprint("GIT_CONFIG_KEY_", n), s[0]}, [2]string{fmt.Sprint("GIT_CONFIG_VALUE_", n), s[1]})
		n++
	}
	env.Set = append(env.Set, [2]string{"GIT_CONFIG_COUNT", strconv.Itoa(n)})
}
