import { mount } from "svelte";
import "./console.css";
import Console from "./Console.svelte";

mount(Console, { target: document.getElementById("console")! });
