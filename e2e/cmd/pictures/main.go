// Pictures makes the pictures of the README and of docs from the real demo and the real
// pages. Run it as "make pictures".
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"accessbroker.internal/e2e/pictures"
)

func main() {
	broker := flag.String("broker", "../bin/broker", "the program")
	dir := flag.String("dir", "../docs/pictures", "where the pictures go")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := record(*broker, filepath.Join(*dir, "demo.svg"))
	if err == nil {
		err = pictures.Pages(ctx, *broker, *dir)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func record(broker, file string) error {
	cmd := exec.Command(broker, "demo")
	cmd.Args[0] = "broker"
	cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=")
	lines, err := pictures.Capture(cmd)
	if err != nil {
		return err
	}
	picture, err := pictures.Recording("broker demo", lines)
	if err != nil {
		return err
	}
	return os.WriteFile(file, picture, 0o644)
}
