package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/issuers/issuertest"
)

// Of the environment, only the credentials count, and those only if the broker has
// no other way to authenticate.
func TestEnvironmentHasOnlyCredentials(t *testing.T) {
	for key, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "env-secret", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		"AWS_REGION": "us-west-2", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "9",
	} {
		t.Setenv(key, value)
	}
	f := newFakeSTS(t)
	a := newIssuer(t, Config{Region: "eu-west-1", Endpoint: f.url, AssumeRole: &AssumeRole{}, Now: func() time.Time { return issuertest.Noon }, Getenv: os.Getenv})
	if _, _, err := a.Issue(t.Context(), newOrder(t, a)); err != nil {
		t.Fatal(err)
	}
	if sig := f.only().header.Get("Authorization"); !strings.Contains(sig, "Credential=AKIAENV/") || !strings.Contains(sig, "/eu-west-1/sts/") {
		t.Errorf("signed as %q, want AKIAENV in eu-west-1", sig)
	}
	f.calls = nil
	a = f.byAssertion(t)
	if _, _, err := a.Issue(t.Context(), newOrder(t, a)); err != nil || f.only().header.Get("Authorization") != "" {
		t.Errorf("by assertion: signed as %q, %v", f.only().header.Get("Authorization"), err)
	}
}

// serveJSON answers each path with a text.
func serveJSON(t *testing.T, authorization string, texts map[string]string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := texts[r.URL.Path]
		if !ok || r.Header.Get("Authorization") != authorization {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, text)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const servedKeys = `{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "%s", "SecretAccessKey": "s", "Token": "t", "Expiration": "2099-01-01T00:00:00Z", "Version": 1}`

func TestAmbientCredentials(t *testing.T) {
	config := `
# what the AWS tools write
[default]
region = us-west-2
s3 =
  aws_access_key_id = AKIANESTED
[profile config]
aws_access_key_id = AKIACONFIG ; a comment
aws_secret_access_key = "quoted"
[profile process]
credential_process = printf '{"Version": 1, "AccessKeyId": "AKIAPROCESS", "SecretAccessKey": "s"}'
[profile role]
role_arn = arn:aws:iam::123456789012:role/broker
source_profile = keys
external_id = acme
role_session_name = broker
duration_seconds = 3600
[profile environment]
role_arn = arn:aws:iam::123456789012:role/broker
credential_source = Environment
[profile loop]
role_arn = arn:aws:iam::123456789012:role/broker
source_profile = pool
[profile pool]
role_arn = arn:aws:iam::123456789012:role/broker
source_profile = loop
[profile browser]
sso_session = acme
[profile mfa]
role_arn = arn:aws:iam::123456789012:role/broker
source_profile = keys
mfa_serial = arn:aws:iam::123456789012:mfa/ana
[profile hours]
role_arn = arn:aws:iam::123456789012:role/broker
source_profile = keys
duration_seconds = 1h
[sso-session config]
aws_access_key_id = AKIAOTHER
`
	keys := "[keys]\nAWS_ACCESS_KEY_ID=AKIAKEYS\naws_secret_access_key=a=b:c\n[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = s\n"
	env := map[string]string{"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "s"}
	container := serveJSON(t, "token of the pod", map[string]string{"/keys": fmt.Sprintf(servedKeys, "ASIACONTAINER")})
	instance := serveJSON(t, "", map[string]string{
		"/latest/api/token": "imds-token", "/latest/meta-data/iam/security-credentials/": "broker",
		"/latest/meta-data/iam/security-credentials/broker": fmt.Sprintf(servedKeys, "ASIAINSTANCE"),
	})
	for name, c := range map[string]struct {
		profile string
		env     map[string]string
		want    string // access key
		role    string // that is assumed first
	}{
		"environment":                         {env: env, want: "AKIAENV"},
		"profile before environment":          {profile: "keys", env: env, want: "AKIAKEYS"},
		"profile in the environment":          {env: map[string]string{"AWS_PROFILE": "other"}, want: "AKIAOTHER"},
		"config file":                         {profile: "config", want: "AKIACONFIG"},
		"process":                             {profile: "process", want: "AKIAPROCESS"},
		"role of a profile":                   {profile: "role", want: accessKey, role: "AssumeRole"},
		"role by environment":                 {profile: "environment", env: env, want: accessKey, role: "AssumeRole"},
		"pod's token":                         {env: map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": write(t, "token", "pod-token"), "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/broker"}, want: accessKey, role: "AssumeRoleWithWebIdentity"},
		"container":                           {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": container + "/keys", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": write(t, "pod", "token of the pod")}, want: "ASIACONTAINER"},
		"container, token in the environment": {env: map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": container + "/keys", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "token of the pod"}, want: "ASIACONTAINER"},
		"instance":                            {env: map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": instance}, want: "ASIAINSTANCE"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSTS(t)
			a := newIssuer(t, ambient(t, f.url, c.profile, config, keys, c.env))
			if _, _, err := a.Issue(t.Context(), newOrder(t, a)); err != nil {
				t.Fatal(err)
			}
			last := f.calls[len(f.calls)-1]
			if sig := last.header.Get("Authorization"); !strings.Contains(sig, "Credential="+c.want+"/") {
				t.Errorf("signed as %q, want %s", sig, c.want)
			}
			if first := f.calls[0].form; c.role != "" && (len(f.calls) < 2 || first.Get("Action") != c.role || first.Get("RoleArn") != "arn:aws:iam::123456789012:role/broker") {
				t.Errorf("the first of %d requests is %v, want %s", len(f.calls), first, c.role)
			}
			if first := f.calls[0].form; c.profile == "role" && (first.Get("DurationSeconds") != "3600" || first.Get("ExternalId") != "acme" || first.Get("RoleSessionName") != "broker") {
				t.Errorf("the role is assumed with %v, want the settings of its profile", first)
			}
		})
	}
	for name, want := range map[string]string{
		"missing": `there is no profile "missing"`,
		"loop":    `profile "pool": there is no source_profile "loop", or it names this one`,
		"browser": "logs in through a browser",
		"mfa":     "needs MFA",
		"hours":   `duration_seconds "1h" is not a number of seconds`,
	} {
		if _, err := New(ambient(t, "", name, config, keys, nil)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("profile %s: got %v, want %q", name, err, want)
		}
	}
	for name, env := range map[string]map[string]string{
		"no role for the token":  {"AWS_WEB_IDENTITY_TOKEN_FILE": "token"},
		"container over HTTP":    {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://keys.acme.test/"},
		"container without host": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "keys"},
	} {
		if _, err := New(ambient(t, "", "", config, keys, env)); err == nil {
			t.Errorf("%s: New returned no error", name)
		}
	}
}

// ambient returns a configuration whose credentials come from these files of the
// AWS tools and this environment.
func ambient(t *testing.T, url, profile, config, keys string, env map[string]string) Config {
	t.Helper()
	files := map[string]string{"AWS_CONFIG_FILE": write(t, "config", config), "AWS_SHARED_CREDENTIALS_FILE": write(t, "credentials", keys)}
	return Config{
		Region: "eu-west-1", Endpoint: url, AssumeRole: &AssumeRole{Profile: profile}, Now: func() time.Time { return issuertest.Noon },
		Getenv: func(name string) string { return files[name] + env[name] },
	}
}

// The tools' files are in the home folder unless the environment says otherwise.
func TestAmbientCredentialsInHome(t *testing.T) {
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, ".aws"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".aws", "credentials"), []byte("[default]\naws_access_key_id = AKIAHOME\naws_secret_access_key = s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFakeSTS(t)
	a := newIssuer(t, Config{
		Region: "eu-west-1", Endpoint: f.url, AssumeRole: &AssumeRole{}, Now: func() time.Time { return issuertest.Noon },
		Getenv: func(name string) string { return map[string]string{"HOME": home}[name] },
	})
	if _, _, err := a.Issue(t.Context(), newOrder(t, a)); err != nil || !strings.Contains(f.only().header.Get("Authorization"), "Credential=AKIAHOME/") {
		t.Errorf("signed as %q, %v", f.only().header.Get("Authorization"), err)
	}
}

// The SDK fetches the broker's own credentials without the deadlines of the callers
// that wait for them, so every client has a timeout.
func TestClientsHaveTimeout(t *testing.T) {
	for name, test := range map[string]struct {
		client *http.Client
		want   time.Duration
	}{"own": {nil, clientTimeout}, "given": {&http.Client{}, clientTimeout}, "given with timeout": {&http.Client{Timeout: time.Minute}, time.Minute}} {
		if got := newHTTPClient(test.client, nil).http.Timeout; got != test.want || got <= 0 {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
	hangs := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(hangs) })
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newHTTPClient(&http.Client{Timeout: time.Millisecond}, nil).Do(request); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: got %v, want %v", err, context.DeadlineExceeded)
	}
}
