package main

import (
	"errors"
	"os"
)

// A memory keeps the secrets of this process from other processes of the same user, and
// out of core dumps.
type memory struct {
	hidden map[string]string // variables that have left the environment
}

// serverSecrets are the variables with secrets that "broker serve" reads. Other commands
// leave the AWS variables to the commands that they start.
var serverSecrets = []string{sealKeyVar, "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}

const sealKeyVar = "BROKER_SEAL_KEY"

// protect protects the process before a command runs. An error means that a part of the
// protection is missing.
func (m *memory) protect(command string) error {
	secrets, noCore := []string{sealKeyVar}, error(nil)
	switch command {
	case "serve":
		secrets, noCore = serverSecrets, limitCore()
	case "dev", "demo", "mcp", "proxy":
		noCore = limitCore()
	}
	// First the environment: a process that is not dumpable may not write to its own
	// memory by file, unless it is root's.
	return errors.Join(m.hide(secrets), noCore, forbidDumps())
}

// hide removes variables from the environment, and from the block that the process was
// started with. Others see that block in /proc/PID/environ, even after os.Unsetenv.
func (m *memory) hide(names []string) error {
	var found []string
	for _, name := range names {
		value, ok := os.LookupEnv(name)
		if !ok {
			continue
		}
		if m.hidden == nil {
			m.hidden = map[string]string{}
		}
		m.hidden[name] = value
		found = append(found, name)
	}
	if len(found) == 0 {
		return nil
	}
	err := eraseInitial(found)
	for _, name := range found {
		err = errors.Join(err, os.Unsetenv(name))
	}
	return err
}

// getenv is os.Getenv, also for hidden variables.
func (m *memory) getenv(name string) string {
	if value, ok := m.hidden[name]; ok {
		return value
	}
	return os.Getenv(name)
}
