package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// The broker's own credentials are found in the places that the AWS tools use,
// except single sign-on and logins in a browser, which a server can't do. The
// SDK's config module finds them too, but links the clients of those services.

// errNoCredentials has no details for callers, because the error of a provider may
// contain secrets.
var errNoCredentials = errors.New("the broker has no AWS credentials of its own")

// ownCredentials returns the provider of the credentials that sign the broker's
// requests. Requests with an assertion are not signed.
func (c Config) ownCredentials() (aws.CredentialsProvider, error) {
	a := c.AssumeRole
	if a == nil {
		return aws.AnonymousCredentials{}, nil
	}
	if a.CredentialsFile != "" {
		if _, err := a.read(); err != nil {
			return nil, fmt.Errorf("auth/assume_role: %s has no profile %q with an access key and a secret", a.CredentialsFile, a.profile())
		}
		return hidden{aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return a.read() })}, nil
	}
	found, err := c.ambient()
	if err != nil {
		return nil, fmt.Errorf("finding the broker's own AWS credentials: %w", err)
	}
	return hidden{aws.NewCredentialsCache(found, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = renewEarly })}, nil
}

// renewEarly is how long before their expiry the broker's own credentials are fetched
// again.
const renewEarly = 5 * time.Minute

// hidden replaces the errors of a provider with errNoCredentials.
type hidden struct{ provider aws.CredentialsProvider }

// Retrieve implements aws.CredentialsProvider.
func (h hidden) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := h.provider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, errNoCredentials
	}
	return c, nil
}

func (a *AssumeRole) profile() string { return cmp.Or(a.Profile, "default") }

// read reads the credentials file, which may have been replaced since the last
// request.
func (a *AssumeRole) read() (aws.Credentials, error) {
	all := profiles{}
	if err := all.read(a.CredentialsFile, false); err != nil {
		return aws.Credentials{}, err
	}
	keys, ok := all[a.profile()].keys()
	if !ok {
		return aws.Credentials{}, errors.New("no access key and secret")
	}
	return keys, nil
}

// ambient finds credentials in the environment, in a profile of the AWS tools'
// files, at a container's endpoint or at the instance's, in this order. A profile
// in the operator's file comes before the environment.
func (c Config) ambient() (aws.CredentialsProvider, error) {
	if c.Getenv == nil {
		c.Getenv = func(string) string { return "" }
	}
	environment := profile{
		"aws_access_key_id": c.Getenv("AWS_ACCESS_KEY_ID"), "aws_secret_access_key": c.Getenv("AWS_SECRET_ACCESS_KEY"),
		"aws_session_token": c.Getenv("AWS_SESSION_TOKEN"),
	}
	if c.AssumeRole.Profile == "" {
		if keys, ok := environment.keys(); ok {
			return credentials.StaticCredentialsProvider{Value: keys}, nil
		}
		if file := c.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"); file != "" {
			return c.byTokenFile(file, c.Getenv("AWS_ROLE_ARN"), c.Getenv("AWS_ROLE_SESSION_NAME"))
		}
	}
	all, err := c.toolProfiles()
	if err != nil {
		return nil, err
	}
	name := cmp.Or(c.AssumeRole.Profile, c.Getenv("AWS_PROFILE"), c.Getenv("AWS_DEFAULT_PROFILE"))
	if name != "" && all[name] == nil {
		return nil, fmt.Errorf("there is no profile %q in the files of the AWS tools", name)
	}
	return c.fromProfile(cmp.Or(name, "default"), all, environment)
}

// toolProfiles returns the profiles in the files of the AWS tools.
func (c Config) toolProfiles() (profiles, error) {
	all, config, keys := profiles{}, c.Getenv("AWS_CONFIG_FILE"), c.Getenv("AWS_SHARED_CREDENTIALS_FILE")
	if home := c.Getenv("HOME"); home != "" {
		config, keys = cmp.Or(config, filepath.Join(home, ".aws", "config")), cmp.Or(keys, filepath.Join(home, ".aws", "credentials"))
	}
	err := all.read(config, true)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = all.read(keys, false)
	}
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return all, err
}

// fromProfile returns the credentials of a profile, and those of the container or
// instance if the profile names none.
func (c Config) fromProfile(name string, all profiles, environment profile) (aws.CredentialsProvider, error) {
	p := all[name]
	var source aws.CredentialsProvider
	var err error
	keys, ok := p.keys()
	switch {
	case p["source_profile"] != "" && p["source_profile"] != name:
		delete(all, name) // so that profiles that name each other end
		if all[p["source_profile"]] == nil {
			return nil, fmt.Errorf("profile %q: there is no source_profile %q, or it names this one", name, p["source_profile"])
		}
		source, err = c.fromProfile(p["source_profile"], all, environment)
	case ok:
		source = credentials.StaticCredentialsProvider{Value: keys}
	case p["credential_source"] != "":
		source, err = c.namedSource(p["credential_source"], environment)
	case p["web_identity_token_file"] != "":
		return c.byTokenFile(p["web_identity_token_file"], p["role_arn"], p["role_session_name"])
	case p["sso_session"] != "" || p["sso_start_url"] != "" || p["login_session"] != "":
		return nil, fmt.Errorf("profile %q logs in through a browser, which a server can't do", name)
	case p["credential_process"] != "":
		source = processcreds.NewProvider(p["credential_process"])
	case c.hasContainer():
		source, err = c.container()
	default:
		source = c.instance()
	}
	if err != nil || p["role_arn"] == "" {
		return source, err
	}
	return c.byRole(source, name, p)
}

func (c Config) namedSource(name string, environment profile) (aws.CredentialsProvider, error) {
	switch name {
	case "Environment":
		keys, _ := environment.keys()
		return credentials.StaticCredentialsProvider{Value: keys}, nil
	case "EcsContainer":
		return c.container()
	case "Ec2InstanceMetadata":
		return c.instance(), nil
	}
	return nil, fmt.Errorf("credential_source %q: choose Environment, EcsContainer or Ec2InstanceMetadata", name)
}

// byRole assumes the role of a profile with other credentials.
func (c Config) byRole(source aws.CredentialsProvider, name string, p profile) (aws.CredentialsProvider, error) {
	if p["mfa_serial"] != "" {
		return nil, fmt.Errorf("profile %q needs MFA, which a server can't do", name)
	}
	seconds, err := strconv.ParseUint(cmp.Or(p["duration_seconds"], "0"), 10, 31)
	if err != nil {
		return nil, fmt.Errorf("profile %q: duration_seconds %q is not a number of seconds", name, p["duration_seconds"])
	}
	return stscreds.NewAssumeRoleProvider(c.newSTS(source), p["role_arn"], func(o *stscreds.AssumeRoleOptions) {
		o.Duration = time.Duration(seconds) * time.Second // zero: the SDK's default
		if o.RoleSessionName = p["role_session_name"]; p["external_id"] != "" {
			o.ExternalID = aws.String(p["external_id"])
		}
	}), nil
}

// byTokenFile assumes a role with the token in a file, as in a pod of EKS.
func (c Config) byTokenFile(file, role, name string) (aws.CredentialsProvider, error) {
	if role == "" {
		return nil, fmt.Errorf("the web identity token in %s needs a role: set AWS_ROLE_ARN, or role_arn in the profile", file)
	}
	client := c.newSTS(aws.AnonymousCredentials{})
	return stscreds.NewWebIdentityRoleProvider(client, role, stscreds.IdentityTokenFile(file), func(o *stscreds.WebIdentityRoleOptions) {
		o.RoleSessionName = name
	}), nil
}

func (c Config) hasContainer() bool {
	return c.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != "" || c.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") != ""
}

// ecsEndpoint is where ECS serves the credentials of a task.
const ecsEndpoint = "http://169.254.170.2"

// containerHosts may serve credentials without TLS: ECS, and EKS Pod Identity.
var containerHosts = map[string]bool{"localhost": true, "169.254.170.2": true, "169.254.170.23": true, "fd00:ec2::23": true}

// container returns the credentials that the environment's endpoint serves.
func (c Config) container() (aws.CredentialsProvider, error) {
	endpoint := c.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if path := c.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		endpoint = ecsEndpoint + path
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" {
		return nil, errors.New("AWS_CONTAINER_CREDENTIALS_FULL_URI is not a URL")
	}
	if u.Scheme != "https" && !containerHosts[u.Hostname()] && !net.ParseIP(u.Hostname()).IsLoopback() {
		return nil, fmt.Errorf("AWS_CONTAINER_CREDENTIALS_FULL_URI: %s may not serve credentials without TLS", u.Hostname())
	}
	provider := endpointcreds.New(endpoint, func(o *endpointcreds.Options) {
		o.HTTPClient, o.AuthorizationToken = newHTTPClient(nil, nil), c.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
		if file := c.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
			o.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
				text, err := os.ReadFile(file) // EKS replaces it
				return string(text), err
			})
		}
	})
	return provider, nil
}

// instance returns the credentials of an EC2 instance's profile.
func (c Config) instance() aws.CredentialsProvider {
	options := imds.Options{Endpoint: c.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")}
	if strings.EqualFold(c.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		options.ClientEnableState = imds.ClientDisabled
	}
	if strings.EqualFold(c.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"), "IPv6") {
		options.EndpointMode = imds.EndpointModeStateIPv6
	}
	if strings.EqualFold(c.Getenv("AWS_EC2_METADATA_V1_DISABLED"), "true") {
		options.EnableFallback = aws.FalseTernary
	}
	return ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = imds.New(options) })
}

// A profile is a section of a file of the AWS tools, and profiles are all
// sections by name.
type (
	profile  map[string]string
	profiles map[string]profile
)

func (p profile) keys() (aws.Credentials, bool) {
	c := aws.Credentials{AccessKeyID: p["aws_access_key_id"], SecretAccessKey: p["aws_secret_access_key"], SessionToken: p["aws_session_token"]}
	return c, c.HasKeys()
}

// read adds the profiles of a file. In a config file, a section other than
// [default] is called [profile NAME]. A later file overrides an earlier one.
func (all profiles) read(file string, isConfig bool) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var current profile
	for line := range strings.Lines(string(text)) {
		name, isSection := strings.CutPrefix(strings.TrimSpace(line), "[")
		switch {
		case isSection:
			name, _, _ = strings.Cut(name, "]")
			current = all.section(strings.Fields(name), isConfig)
		case current == nil || strings.ContainsRune(" \t#;", rune(line[0])):
			// Indented lines are nested settings, which have nothing to do with keys.
		default:
			current.set(line)
		}
	}
	return nil
}

// section returns the profile that a section adds to; nil if it is none.
func (all profiles) section(words []string, isConfig bool) profile {
	if isConfig && len(words) == 2 && words[0] == "profile" {
		words = words[1:]
	} else if len(words) != 1 || isConfig && words[0] != "default" {
		return nil
	}
	if all[words[0]] == nil {
		all[words[0]] = profile{}
	}
	return all[words[0]]
}

// set sets a property from a line such as "region = eu-west-1 # Ireland".
func (p profile) set(line string) {
	for _, comment := range []string{" #", " ;", "\t#", "\t;"} {
		line, _, _ = strings.Cut(line, comment)
	}
	if at := strings.IndexAny(line, "=:"); at > 0 {
		value := strings.TrimSpace(line[at+1:])
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[0] == value[n-1] {
			value = value[1 : n-1]
		}
		p[strings.ToLower(strings.TrimSpace(line[:at]))] = value
	}
}
