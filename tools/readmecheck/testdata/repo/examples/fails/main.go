package main

import "os"

func main() {
	os.Stdout.WriteString("goodbye")
	os.Exit(3)
}
